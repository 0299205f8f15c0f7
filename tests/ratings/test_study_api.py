"""Studies by the API for those who run them: protocol, anchors, readers, levels, places given back."""

import uuid

import pytest
from django.contrib.auth.models import Group

from medsyn.roles import STUDY_OWNERS
from ratings.models import Expertise, Study
from ratings.services import create_study, draw_places, revise_protocol
from tests.factories import GeneratedImageFactory, StudyOwnerFactory, UserFactory


@pytest.fixture
def owner(db):
    return StudyOwnerFactory(username="owner")


@pytest.fixture
def own_study(study, owner):
    study.created_by = owner
    study.save()
    return study


@pytest.fixture
def anchors(db) -> dict:
    return dict(zip((1, 2, 3), GeneratedImageFactory.create_batch(3), strict=True))


def base(study) -> str:
    return f"/api/studies/{study.public_id}"


def test_an_owner_makes_a_study_with_a_protocol(images, anchors, owner, api):
    body = {
        "name": "By API",
        "images": [str(image.public_id) for image in images],
        "protocol": {
            "overlap_target": 2,
            "repeat_share": 0.1,
            "scale_texts": {"1": "unusable"},
            "defects": [["tilt", "Tilted"]],
            "anchors": {str(grade): str(image.public_id) for grade, image in anchors.items()},
        },
    }
    made = api(owner).post("/api/studies/", body, "json").json()
    study = Study.objects.get(public_id=made["id"])
    assert study.created_by == owner and study.protocol.overlap_target == 2
    assert made["progress"] == {"done": 0, "total": 12}  # what the pool has to give
    shown = api(owner).get(f"{base(study)}/protocol/").json()
    assert shown["scale_texts"] == {"1": "unusable", "2": "", "3": ""} and shown["defects"] == [["tilt", "Tilted"]]
    assert shown["anchors"] == body["protocol"]["anchors"]
    assert (shown["version"], shown["is_frozen"]) == (1, False)


@pytest.mark.parametrize(
    "protocol, field",
    [
        ({"overlap_target": 0}, "detail"),
        ({"repeat_share": 0.9}, "detail"),
        ({"defects": [["Bad code", "x"]]}, "detail"),
        ({"gold_share": 0.5}, "detail"),  # there are no gold images
        ({"anchors": {"4": None}}, "protocol"),
        ({"anchors": {"1": str(uuid.UUID(int=3))}}, "protocol"),
        ({"reason": "because"}, "protocol"),
    ],
)
def test_a_study_that_cannot_be_is_refused_whole(images, owner, api, protocol, field):
    body = {"name": "Bad", "images": [str(image.public_id) for image in images], "protocol": protocol}
    reply = api(owner).post("/api/studies/", body, "json")
    assert reply.status_code == 400 and field in reply.json(), reply.json()
    assert not Study.objects.exists()


def test_a_protocol_is_revised_with_a_reason_once_it_is_frozen(own_study, places, rate, owner, api, anchors):
    url = f"{base(own_study)}/protocol/"
    assert api(owner).patch(url, {"repeat_share": 0.1}, "json").json()["version"] == 1
    rate(places[0], 2)
    assert api(owner).get(url).json()["is_frozen"]
    refused = api(owner).patch(url, {"repeat_share": 0.2}, "json")
    assert refused.status_code == 400 and "new version" in refused.json()["detail"][0]
    body = {"repeat_share": 0.2, "reason": "more repeats", "anchors": {"2": str(anchors[2].public_id)}}
    revised = api(owner).patch(url, body, "json").json()
    assert (revised["version"], revised["is_frozen"], revised["repeat_share"]) == (2, False, 0.2)
    assert revised["anchors"] == {"2": str(anchors[2].public_id)}
    assert api(owner).patch(url, {"anchors": {"2": None}}, "json").json()["anchors"] == {}


def test_anchors_and_images_of_a_study_are_kept_apart(own_study, images, anchors, owner, api):
    refused = api(owner).patch(f"{base(own_study)}/protocol/", {"anchors": {"1": str(images[0].public_id)}}, "json")
    assert refused.status_code == 400 and str(images[0].public_id) in refused.json()["detail"][0]
    revise_protocol(study=own_study, created_by=owner, anchors=anchors)
    refused = api(owner).post(f"{base(own_study)}/images/", {"images": [str(anchors[2].public_id)]}, "json")
    assert refused.status_code == 400 and str(anchors[2].public_id) in refused.json()["images"][0]


def test_readers_see_the_anchors_that_hold_and_nothing_else_of_them(own_study, anchors, bob, mallory, owner, api):
    revise_protocol(study=own_study, created_by=owner, anchors=anchors)
    url = f"{base(own_study)}/anchors/"
    listed = api(bob).get(url).json()["anchors"]
    assert [anchor["grade"] for anchor in listed] == [1, 2, 3]
    assert all(set(anchor) == {"grade", "image"} for anchor in listed)
    for anchor, image in zip(listed, anchors.values(), strict=True):
        picture = api(bob).get(anchor["image"])
        assert picture.status_code == 200 and picture["Content-Type"] == "image/png"
        assert str(image.public_id) not in anchor["image"]
        assert api(mallory).get(anchor["image"]).status_code == 404
    assert api(mallory).get(url).status_code == 404
    assert api().get(url).status_code in (401, 403)
    assert api(owner).get(url).status_code == 200


def test_what_an_owner_runs_is_theirs_alone(own_study, places, rate, owner, bob, api, images):
    stranger = UserFactory()
    stranger.groups.add(Group.objects.get(name=STUDY_OWNERS))
    rate(places[0], 2)
    newcomer = UserFactory()
    asked = [
        ("get", "/", {}),
        ("patch", "/", {"description": "x"}),
        ("post", "/images/", {"images": [str(images[0].public_id)]}),
        ("get", "/memberships/", {}),
        ("post", "/memberships/", {"reader": newcomer.get_username(), "expert_level": 2}),
        ("get", "/readers/", {}),
        ("get", "/protocol/", {}),
        ("patch", "/protocol/", {"reason": "x", "repeat_share": 0.1}),
    ]
    for method, path, body in asked:
        options = ("json",) if method != "get" else ()
        assert getattr(api(stranger), method)(base(own_study) + path, body, *options).status_code == 404, path
        reader = getattr(api(bob), method)(base(own_study) + path, body, *options).status_code
        assert reader == (200 if (method, path) == ("get", "/") else 403), path
        assert getattr(api(owner), method)(base(own_study) + path, body, *options).status_code in (200, 201), path
    assert api(owner).get("/api/ratings/").json()["count"] == 1
    assert api(stranger).get("/api/ratings/").json()["count"] == 0
    for name, theirs in {"study": own_study.public_id, "reader": bob.get_username()}.items():
        assert api(owner).get("/api/ratings/", {name: theirs}).json()["count"] == 1
        assert api(stranger).get("/api/ratings/", {name: theirs}).status_code == 400  # as if there were none
    assert [row["id"] for row in api(owner).get("/api/studies/").json()["results"]] == [str(own_study.public_id)]
    assert api(stranger).get("/api/studies/").json()["count"] == 0


def test_an_owner_sees_the_progress_of_all_a_reader_their_own(own_study, places, rate, owner, bob, api):
    rate(places[0], 2)
    seen = [api(person).get(f"{base(own_study)}/").json()["progress"] for person in (owner, bob)]
    assert seen == [{"done": 1, "total": 12}, {"done": 1, "total": 6}]


def test_a_level_is_verified_by_an_administrator_and_kept(own_study, bob, owner, alice, api):
    member = own_study.memberships.get(reader=bob)
    other = create_study(name="Other", images=[], readers=[(bob, 3)])
    url = f"{base(own_study)}/memberships/{member.pk}/"
    assert api(owner).patch(url, {"expert_level": 1}, "json").status_code == 403
    assert api(alice).patch(url, {"expert_level": 4}, "json").status_code == 400
    assert api(alice).patch(url, {"expert_level": 1}, "json").json() == {"expert_level": 1}
    assert other.memberships.get(reader=bob).expert_level == 1
    known = Expertise.objects.of(bob).get()
    assert (known.expert_level, known.verified_by) == (1, alice)
    own_study.is_open = False
    own_study.save()
    assert api(alice).patch(url, {"expert_level": 2}, "json").status_code == 400


def test_an_owner_gives_a_readers_places_back(images, bob, owner, api, mallory):
    study = create_study(
        name="Pool", images=images, readers=[(bob, 2)], created_by=owner, protocol={"overlap_target": 1}
    )
    draw_places(study=study, reader=bob)
    url = f"{base(study)}/release/"
    assert api(owner).post(url, {"reader": "bob"}, "json").json() == {"released": 6}
    assert api(owner).post(url, {"reader": "mallory"}, "json").status_code == 400
    assert api(bob).post(url, {"reader": "bob"}, "json").status_code == 403


def test_a_name_in_use_or_frozen_is_refused(own_study, places, rate, owner, api):
    create_study(name="Taken", images=[])
    url = f"{base(own_study)}/"
    assert api(owner).patch(url, {"name": "Taken"}, "json").status_code == 400
    assert api(owner).patch(url, {"name": "Free"}, "json").json()["name"] == "Free"
    rate(places[0], 2)
    refused = api(owner).patch(url, {"name": "Later"}, "json")
    assert refused.status_code == 400 and "exports" in refused.json()["name"][0]
    assert api(owner).patch(url, {"is_open": False}, "json").json()["is_open"] is False
