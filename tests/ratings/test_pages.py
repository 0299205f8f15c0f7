"""Pages: forms that make studies, lists that filter, sort and page."""

import pytest
from django.urls import reverse

from generation.models import GeneratedImage
from ratings.models import Export, Rating, Study
from ratings.services import freeze_export
from tests.factories import GeneratedImageFactory, GenerationJobFactory, PromptFactory, UserFactory


@pytest.fixture
def admin(signed_in, alice):
    return signed_in(alice)


def page(client, name: str, *arguments, **query) -> str:
    reply = client.get(reverse(name, args=arguments), query)
    assert reply.status_code == 200
    return reply.content.decode()


@pytest.fixture
def stock(db):
    """Two chest X-rays of a job, one of them rejected, and an OCT of another job."""
    job, prompt = GenerationJobFactory(), PromptFactory()
    rejected = {"verdict": GeneratedImage.Verdict.REJECTED, "selector_score": 0.1, "policy_score": 0.1}
    return {
        "kept": GeneratedImageFactory(job=job, prompt=prompt),
        "rejected": GeneratedImageFactory(job=job, prompt=prompt, **rejected),
        "oct": GeneratedImageFactory(prompt=PromptFactory(text="OCT: cysts")),
    }


@pytest.mark.parametrize(
    "choice, expected",
    [
        ({}, {"kept", "oct"}),
        ({"with_rejected": "on"}, {"kept", "rejected", "oct"}),
        ({"kinds": ["oct"]}, {"oct"}),
        ({"kinds": ["oct", "chest_xray"]}, {"kept", "oct"}),
        ({"job": "first", "with_rejected": "on"}, {"kept", "rejected"}),
        ({"max_images": "1"}, {"oct"}),
    ],
)
def test_the_form_makes_a_study_of_the_chosen_images_and_readers(admin, stock, bob, carol, choice, expected):
    if choice.get("job"):
        choice = {**choice, "job": stock["kept"].job_id}
    reply = admin.post(
        "/studies/new/",
        {"name": "Made", f"reads_{bob.pk}": "on", f"level_{bob.pk}": "3", f"level_{carol.pk}": "1", **choice},
    )
    study = Study.objects.get()
    assert reply["Location"] == study.get_absolute_url()
    assert set(study.images.all()) == {stock[name] for name in expected}
    assert [(member.reader, member.expert_level) for member in study.memberships.all()] == [(bob, 3)]
    assert study.assignments.count() == len(expected)


def test_images_that_somebody_rated_can_be_left_out(admin, study, places, rate, images):
    rate(places[0], 1)
    admin.post("/studies/new/", {"name": "Unrated", "only_unrated": "on"})
    assert places[0].image not in Study.objects.get(name="Unrated").images.all()
    assert Study.objects.get(name="Unrated").images.count() == 5


@pytest.mark.parametrize(
    "given, message",
    [
        ({"name": "Chest pilot"}, "There is a study of this name already"),
        ({"name": "X", "kinds": ["breast_mri"]}, "No image fits this choice"),
        ({"name": ""}, "This field is required"),
    ],
)
def test_a_bad_form_keeps_what_was_typed(admin, study, given, message):
    reply = admin.post("/studies/new/", {"description": "Typed with care", **given})
    assert reply.status_code == 422
    assert message in reply.content.decode() and "Typed with care" in reply.content.decode()
    assert Study.objects.count() == 1


def test_the_dashboard_shows_who_did_what(admin, study, places, rate):
    for place, value in zip(places[:5], (1, 1, 2, 3, 3), strict=True):
        rate(place, value, active_ms=2000)
    text = page(admin, "ratings:study", study.public_id, sort="-done")
    assert text.index('<th scope="row">bob') < text.index('<th scope="row">carol')
    assert "1800 <small>per reading hour" in text
    assert "5 answers in a tidy table" in text
    ascending = page(admin, "ratings:study", study.public_id, sort="done")
    assert ascending.index('<th scope="row">carol') < ascending.index('<th scope="row">bob')


def test_readers_and_images_join_on_the_dashboard(admin, study):
    dora, url = UserFactory(username="dora"), study.get_absolute_url()
    admin.post(f"{url}readers/", {"reader": dora.pk, "expert_level": 1})
    assert study.assignments.filter(reader=dora).count() == 6
    again = admin.post(f"{url}readers/", {"reader": dora.pk, "expert_level": 1})
    assert again.status_code == 422
    GeneratedImageFactory.create_batch(2)
    admin.post(f"{url}images/add/", {"only_unrated": "on"})
    assert study.assignments.filter(reader=dora).count() == 8
    admin.post(f"{url}state/", {"open": "0"})
    assert not Study.objects.get().is_open


def test_a_reader_sees_progress_and_the_way_on(study, places, rate, signed_in, bob):
    assert "Start" in page(signed_in(bob), "ratings:studies")
    rate(places[0], 1)
    text = page(signed_in(bob), "ratings:studies")
    assert "1 of 6 rated" in text and "Continue" in text and "New study" not in text
    for place in places[1:]:
        rate(place, 2)
    assert "all rated" in page(signed_in(bob), "ratings:studies")


def test_empty_lists_say_what_to_do_next(admin, signed_in, mallory):
    assert "No study waits for you" in page(signed_in(mallory), "ratings:studies")
    assert "No studies yet" in page(admin, "ratings:studies")
    assert "No ratings yet" in page(admin, "ratings:data")
    assert "Nothing exported yet" in page(admin, "ratings:exports")


@pytest.mark.parametrize(
    ("name", "query"), [("ratings:studies", {"state": "closed"}), ("ratings:exports", {"simulated": "yes"})]
)
def test_lists_of_studies_and_exports_clear_their_filter(admin, study, places, rate, name, query):
    rate(places[0], 2)
    freeze_export(study=study)
    clear = f'href="{reverse(name)}">Clear</a>'
    assert clear not in page(admin, name)
    assert clear in page(admin, name, **query)


def test_ratings_are_filtered_sorted_and_paged(admin, study, places, rate, carol):
    for place, value in zip(places, (1, 2, 3, 1, 2, 3), strict=True):
        rate(place, value)
    rate(study.assignments.filter(reader=carol).first(), 3)

    def rows(**query) -> int:
        return page(admin, "ratings:data", **query).count('class="prompt-cell"')

    assert (rows(), rows(reader="carol"), rows(value=1), rows(study=str(study.public_id))) == (7, 1, 2, 7)
    assert (rows(modality="X-Ray"), rows(modality="OCT")) == (7, 0)
    assert (rows(state="withdrawn"), rows(simulated="yes")) == (0, 0)
    assert rows(study="no such study") == 0
    grades = page(admin, "ratings:data", sort="value")
    assert grades.index("Poor</span>") < grades.index("Acceptable</span>") < grades.index("Excellent</span>")
    assert rows(sort="secret_key", page="99") == 7


def test_exports_are_written_listed_and_downloaded(admin, study, places, rate):
    rate(places[0], 2)
    refused = admin.post("/data/exports/", {"modality": "OCT"})
    assert refused.status_code == 422 and "none match" in refused.content.decode()
    admin.post("/data/exports/", {"study": str(study.public_id)})
    export = Export.objects.get()
    text = page(admin, "ratings:exports", study=str(study.public_id))
    assert export.sha256 in text
    for name, start in (("ratings", b"image_path,"), ("tidy", b"study,"), ("dictionary", b"column,meaning")):
        reply = admin.get(f"/data/exports/{export.pk}/{name}/")
        assert reply.getvalue().startswith(start)
        assert f"medsyn_export_{export.pk}_" in reply["Content-Disposition"]
    assert "No export fits" in page(admin, "ratings:exports", simulated="yes")
    export.path.unlink()
    assert admin.get(f"/data/exports/{export.pk}/ratings/")["Location"] == "/data/exports/"


def test_the_administration_edits_no_evidence(admin, study, places, rate):
    rating = rate(places[0], 2)
    freeze_export(study=study)
    for model in ("rating", "ratingevent", "assignment", "export", "study", "membership"):
        assert admin.get(f"/admin/ratings/{model}/").status_code == 200
        assert admin.get(f"/admin/ratings/{model}/add/").status_code == 403
    assert admin.post(f"/admin/ratings/rating/{rating.pk}/change/", {"value": 1}).status_code == 403
    assert admin.post(f"/admin/ratings/rating/{rating.pk}/delete/", {"post": "yes"}).status_code == 403
    assert Rating.objects.get().value == 2
