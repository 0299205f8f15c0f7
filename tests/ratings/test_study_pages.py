"""Pages of those who run studies: what is typed becomes the stored protocol, faults keep what was typed, and others
find no page at all."""

import uuid

import pytest
from django.urls import reverse

from ratings import study_plan
from ratings.forms.protocol import as_code
from ratings.models import Assignment, GoldGrade, Rating, Study
from ratings.services import create_study, draw_places, enrol_reader, revise_protocol, set_gold, verify_level
from tests.factories import GeneratedImageFactory, PromptFactory, StudyOwnerFactory, UserFactory


@pytest.fixture
def olga(db):
    """A study owner."""
    return StudyOwnerFactory(username="olga")


@pytest.fixture
def owner(signed_in, olga):
    return signed_in(olga)


@pytest.fixture
def gold(db, alice) -> list:
    """Six chest X-rays of known grade, two of each."""
    images = GeneratedImageFactory.create_batch(6)
    for number, image in enumerate(images):
        set_gold(image=image, grade=number % 3 + 1, set_by=alice, rationale=f"Reason {number}")
    return images


@pytest.fixture
def own_study(olga, bob, db) -> Study:
    """Six images that bob reads; olga's."""
    images = GeneratedImageFactory.create_batch(6)
    return create_study(name="Own", images=images, readers=[(bob, 3)], order_seed=3, created_by=olga)


def text_of(client, name: str, *arguments, **query) -> str:
    reply = client.get(reverse(name, args=arguments), query)
    assert reply.status_code == 200
    return reply.content.decode()


# A new study ----------------------------------------------------------------------------------------------------


def test_every_field_of_the_form_becomes_the_stored_protocol(owner, olga, gold, bob, carol):
    GeneratedImageFactory.create_batch(16)
    verify_level(person=bob, expert_level=3, verified_by=olga)
    given = {
        "name": "Whole", "description": "As in clinic", "max_images": 16,
        f"reads_{bob.pk}": "on", f"level_{bob.pk}": "3", f"level_{carol.pk}": "1",
        "overlap": "some", "overlap_target": "2", "repeat_percent": "12", "repeat_distance": "4",
        "gold_percent": "20", "real_percent": "", "calibration_percent": "25", "num_training_images": "3",
        "order_seed": "99", "scale_1": "Of no use", "scale_3": "As a patient's",
        "defects": ["blur", "noise"], "own_defects": "vessel: Vessels broken off\n\nRing  artefact",
        "anchor_1": str(gold[0].public_id),
        "anchor_3_id": f"https://example.org/images/{gold[5].public_id}/",
    }  # fmt: skip
    reply = owner.post("/studies/new/", given)
    study = Study.objects.get()
    assert reply["Location"] == study.get_absolute_url()
    protocol = study.protocol
    assert (study.order_seed, study.created_by, study.description) == (99, olga, "As in clinic")
    assert (protocol.overlap_target, protocol.repeat_distance, protocol.num_training_images) == (2, 4, 3)
    shares = (protocol.repeat_share, protocol.gold_share, protocol.real_share, protocol.calibration_share)
    assert shares == pytest.approx((0.12, 0.2, 0, 0.25))
    assert protocol.scale_texts == {"1": "Of no use", "2": "", "3": "As a patient's"}
    assert protocol.defects == [
        ["noise", "Noise"], ["blur", "Blur"], ["vessel", "Vessels broken off"], ["ring_artefact", "Ring  artefact"],
    ]  # fmt: skip
    assert {anchor.grade: anchor.image for anchor in protocol.anchors.all()} == {1: gold[0], 3: gold[5]}
    assert [(member.reader, member.expert_level) for member in study.memberships.all()] == [(bob, 3)]
    roles = [entry.role for entry in study.study_images.all()]
    assert (roles.count("gold"), roles.count("calibration"), len(roles)) == (4, 4, 20)


@pytest.mark.parametrize(
    "fault, message",
    [
        ({"overlap": "some"}, "Say how many readers each image is to have"),
        ({"own_defects": "Noise"}, "Twice in the list: noise"),
        ({"own_defects": "9: Nine"}, "Line 1, &#x27;9: Nine&#x27;"),
        ({"own_defects": "a\nb\nc"}, "These are 10 defects; there are keys for 9"),
        ({"gold_percent": "50", "real_percent": "40"}, "together may be 80\u00a0% at most"),
        ({"repeat_percent": "51"}, "less than or equal to 50"),
        ({"anchor_2_id": str(uuid.UUID(int=5))}, "There is no image"),
        ({"gold_percent": "50"}, "some are missing"),
        ({"kinds": ["oct"]}, "No image fits this choice"),
    ],
)
def test_a_fault_is_said_and_what_was_typed_is_kept(owner, bob, fault, message):
    GeneratedImageFactory.create_batch(4)
    typed = {"name": "Typed", "scale_2": "Half of it", f"reads_{bob.pk}": "on", f"level_{bob.pk}": "1"}
    standard = ["noise", "blur", "motion", "artefact", "anatomy", "finding", "marker"]
    reply = owner.post("/studies/new/", {**typed, "defects": standard, **fault})
    html = reply.content.decode()
    assert reply.status_code == 422 and message in html
    assert 'value="Typed"' in html and 'value="Half of it"' in html
    assert not Study.objects.exists()


def test_defaults_follow_the_gold_images_there_are(owner, alice, bob, carol):
    verify_level(person=carol, expert_level=3, verified_by=alice)
    fields = owner.get("/studies/new/").context["form"].fields
    assert (fields["gold_percent"].initial, fields["num_training_images"].initial) == (0, 0)
    assert (fields["repeat_percent"].initial, fields["calibration_percent"].initial) == (10, 40)
    assert (fields[f"level_{carol.pk}"].initial, fields[f"level_{bob.pk}"].initial) == (3, 2)
    for image in GeneratedImageFactory.create_batch(20):
        set_gold(image=image, grade=1, set_by=alice)
    fields = owner.get("/studies/new/").context["form"].fields
    assert (fields["gold_percent"].initial, fields["num_training_images"].initial) == (5, 20)


def test_gold_and_real_images_are_chosen_only_where_that_is_asked(owner, gold):
    real = GeneratedImageFactory(imported=True, is_real=True)
    imported, made = GeneratedImageFactory(imported=True), GeneratedImageFactory()
    expected = {"": {imported, made}, "imported": {imported}, "generated": {made}, "real": {real}, "gold": set(gold)}
    for origin, images in expected.items():
        owner.post("/studies/new/", {"name": f"From {origin}", "origins": [origin] if origin else []})
        assert set(Study.objects.get(name=f"From {origin}".strip()).images.all()) == images


def test_the_plan_says_what_the_study_will_be(owner, gold, bob, carol):
    GeneratedImageFactory.create_batch(57)
    given = {f"reads_{bob.pk}": "on", f"reads_{carol.pk}": "on", "repeat_percent": 10, "gold_percent": 5}
    lines = owner.get("/studies/new/planned/", given).json()["lines"]
    assert lines[0] == "60 images (3 gold), 2 readers: each reads 66, about 7 minutes at 6 s"
    assert "6 hidden repeats per reader: too few" in lines[1]
    made = owner.post("/studies/new/", {**given, "name": "Planned", "repeat_distance": 5})
    study = Study.objects.get()
    assert made.status_code == 302 and study.study_images.count() == 60
    assert study.assignments.filter(reader=bob).count() == 66
    nothing = owner.get("/studies/new/planned/", {"kinds": ["oct"], "overlap": "some"}).json()["lines"]
    assert nothing[0].startswith("0 images, no reader yet")


@pytest.mark.parametrize("repeats, width", [(19, None), (20, 0.29), (50, 0.15), (100, 0.10), (400, 0.05)])
def test_kappa_is_known_as_well_as_the_simulation_says(repeats, width):
    found = study_plan.kappa_half_width(repeats)
    assert found is None if width is None else found == pytest.approx(width)


def test_kappa_widens_steadily_as_repeats_get_fewer():
    widths = [study_plan.kappa_half_width(number) for number in range(20, 300)]
    assert all(before > after for before, after in zip(widths, widths[1:], strict=False))


def test_a_pool_shares_the_work():
    plan = study_plan.StudyPlan(240, 0, 0, num_readers=4, overlap_target=2, repeat_share=0.1, num_training=20)
    assert (plan.first_showings, plan.num_repeats, plan.places, plan.minutes) == (120, 12, 132, 15)
    alone = study_plan.StudyPlan(240, 0, 0, num_readers=1, overlap_target=2, repeat_share=0, num_training=0)
    assert alone.places == 240


@pytest.mark.parametrize(
    "num_main, gold, real, mixed", [(90, 0.1, 0, (10, 0)), (80, 0.1, 0.1, (10, 10)), (5, 0, 0, (0, 0))]
)
def test_what_is_mixed_in_makes_up_its_share_of_the_whole(num_main, gold, real, mixed):
    assert study_plan.mixed_in(num_main, gold, real) == mixed


def test_codes_come_from_labels():
    assert as_code("Broken-off  vessels!") == "broken_off_vessels"


# The protocol ----------------------------------------------------------------------------------------------------


def test_a_protocol_changes_freely_until_it_is_frozen_and_then_with_a_reason(owner, own_study, bob, rate):
    url = reverse("ratings:study-protocol", args=[own_study.public_id])
    page = owner.get(url)
    assert "may still change" in page.content.decode() and "It changes at once" in page.content.decode()
    typed = page.context["form"].initial | {"scale_1": "Of no use"}
    typed = {name: value for name, value in typed.items() if value is not None}
    assert owner.post(url, typed)["Location"] == url
    own_study.refresh_from_db()
    assert (own_study.protocol_version, own_study.protocol.scale_texts["1"]) == (1, "Of no use")
    rate(own_study.assignments.first(), 2)
    typed["own_defects"] = "vessel: Vessels broken off"
    refused = owner.post(url, typed)
    assert refused.status_code == 422 and "ratings were given under the present version" in refused.content.decode()
    assert "vessel: Vessels broken off" in refused.content.decode()
    owner.post(url, {**typed, "reason": "A chip was missing"})
    own_study = Study.objects.get()
    assert own_study.protocol_version == 2 and own_study.protocol.defects[-1] == ["vessel", "Vessels broken off"]
    assert own_study.protocol.scale_texts["1"] == "Of no use"
    versions = owner.get(url).context
    assert [change.label for change in versions["current"].changes] == ["Defects"]
    assert (versions["current"].num_ratings, versions["earlier"][0].num_ratings) == (0, 1)
    assert "A chip was missing" in owner.get(url).content.decode()


def test_a_form_sent_unchanged_makes_no_version(owner, own_study, rate):
    rate(own_study.assignments.first(), 2)
    url = reverse("ratings:study-protocol", args=[own_study.public_id])
    typed = {name: value for name, value in owner.get(url).context["form"].initial.items() if value is not None}
    owner.post(url, {**typed, "reason": "Pressed by mistake"})
    assert Study.objects.get().protocol_version == 1


def test_shares_that_are_no_whole_percent_survive_another_change(owner, own_study, olga):
    revise_protocol(study=own_study, created_by=olga, repeat_share=0.075)
    url = reverse("ratings:study-protocol", args=[own_study.public_id])
    typed = {name: value for name, value in owner.get(url).context["form"].initial.items() if value is not None}
    owner.post(url, {**typed, "scale_2": "Useful"})
    assert Study.objects.get().protocol.repeat_share == 0.075


def test_an_anchor_is_put_kept_and_taken_away(owner, own_study, gold, olga):
    url = reverse("ratings:study-protocol", args=[own_study.public_id])
    owner.post(url, {"anchor_1": str(gold[0].public_id), "anchor_2": str(gold[1].public_id)})
    assert {anchor.grade for anchor in Study.objects.get().protocol.anchors.all()} == {1, 2}
    for image in GeneratedImageFactory.create_batch(9):  # newer ones: the anchor is still offered, and marked
        set_gold(image=image, grade=1, set_by=olga)
    assert f'value="{gold[0].public_id}" id="id_anchor_1_1" checked' in owner.get(url).content.decode()
    owner.post(url, {"anchor_1": str(gold[0].public_id), "anchor_3_id": str(gold[5].public_id)})
    assert {anchor.grade: anchor.image for anchor in Study.objects.get().protocol.anchors.all()} == {
        1: gold[0], 3: gold[5],
    }  # fmt: skip


def test_an_anchor_is_not_rated(owner, gold):
    images = GeneratedImageFactory.create_batch(5)
    anchors = {"anchor_1": str(gold[0].public_id), "anchor_2_id": str(images[0].public_id)}
    owner.post("/studies/new/", {"name": "Mixed", "gold_percent": "50", **anchors})
    chosen = set(Study.objects.get().images.all())
    assert not chosen & {gold[0], images[0]} and len(chosen) == 8


def test_images_are_added_without_the_anchors(owner, own_study, gold, olga):
    before = own_study.study_images.count()
    revise_protocol(study=own_study, created_by=olga, anchors={1: gold[0]})
    url = reverse("ratings:study-images-add", args=[own_study.public_id])
    assert owner.post(url, {"origins": ["gold"]}).status_code == 302
    added = set(own_study.images.all())
    assert gold[0] not in added and gold[1] in added and len(added) > before


def test_an_anchor_that_is_rated_is_refused_by_the_form(owner, own_study):
    url = reverse("ratings:study-protocol", args=[own_study.public_id])
    refused = owner.post(url, {"anchor_1_id": str(own_study.images.first().public_id)})
    assert refused.status_code == 422 and "are to be its anchors" in refused.content.decode()


# Images and their known grades ------------------------------------------------------------------------------------


def test_images_show_roles_and_grades_and_are_made_gold_together(owner, own_study, rate, olga):
    first, second, *_ = own_study.assignments.order_by("position")
    rate(first, 1)
    url = reverse("ratings:study-images", args=[own_study.public_id])
    rows = {entry.image_id: (gold, grades) for entry, gold, grades in owner.get(url).context["rows"]}
    assert rows[first.image_id] == (None, (1, 0, 0)) and rows[second.image_id] == (None, None)
    marked = [str(first.image.public_id), str(second.image.public_id)]
    nothing = owner.post(url, {"grade": "1", "rationale": "Planted"})
    assert nothing.status_code == 422 and "Mark at least one image" in nothing.content.decode()
    owner.post(url, {"images": marked, "grade": "1", "rationale": "Planted"})
    assert {(each.image_id, each.grade, each.rationale, each.set_by) for each in GoldGrade.objects.all()} == {
        (first.image_id, 1, "Planted", olga), (second.image_id, 1, "Planted", olga),
    }  # fmt: skip
    assert text_of(owner, "ratings:study-images", own_study.public_id, rated="yes").count("image-card-body") == 1
    assert text_of(owner, "ratings:study-images", own_study.public_id, role="real").count("image-card-body") == 0


def test_images_of_another_study_are_not_made_gold_here(owner, own_study, gold):
    strange = GeneratedImageFactory()
    url = reverse("ratings:study-images", args=[own_study.public_id])
    assert owner.post(url, {"images": [str(strange.public_id)], "grade": "1"}).status_code == 422
    assert not GoldGrade.objects.filter(image=strange).exists()


def test_who_still_has_to_rate_sees_no_grades_unless_asked_for(signed_in, alice, carol, rate):
    study = create_study(name="Both", images=GeneratedImageFactory.create_batch(2), readers=[(alice, 3), (carol, 1)])
    rate(study.assignments.filter(reader=carol).first(), 3)
    admin = signed_in(alice)
    hidden = text_of(admin, "ratings:study-images", study.public_id)
    assert "Grades are hidden" in hidden and "1 excellent" not in hidden
    assert "1 excellent" in text_of(admin, "ratings:study-images", study.public_id, show=1)


def test_one_image_becomes_gold_and_is_gold_no_more(owner, gold):
    image = GeneratedImageFactory()
    url = reverse("ratings:image-gold", args=[image.public_id])
    assert owner.post(url, {"grade": "3", "rationale": "By a panel"})["Location"] == image.get_absolute_url()
    assert (image.gold.grade, image.gold.rationale) == (3, "By a panel")
    assert "By a panel" in owner.get(image.get_absolute_url()).content.decode()
    assert text_of(owner, "ratings:gold").count("image-card-body") == 7
    owner.post(url, {"grade": ""})
    assert GoldGrade.objects.get(image=image).grade == 3
    back = owner.post(url, {"clear": "1", "next": "https://evil.example/"})
    assert back["Location"] == image.get_absolute_url() and not GoldGrade.objects.filter(image=image).exists()


def test_a_grade_in_use_stays_and_the_page_says_why(owner, gold, olga):
    create_study(name="Uses it", images=gold, created_by=olga)
    reply = owner.post(reverse("ratings:image-gold", args=[gold[0].public_id]), {"clear": "1"}, follow=True)
    assert "in use in Uses it" in reply.content.decode()
    assert GoldGrade.objects.filter(image=gold[0]).exists()


# Ratings and places ------------------------------------------------------------------------------------------------


def test_a_rating_is_declared_void_with_a_reason_and_counts_again(owner, own_study, rate):
    rating = rate(own_study.assignments.first(), 1)
    url = reverse("ratings:rating", args=[rating.pk])
    assert "Void" in text_of(owner, "ratings:data")
    silent = owner.post(f"{url}void/", {"reason": " "})
    assert silent.status_code == 422 and "Say why" in silent.content.decode()
    owner.post(f"{url}void/", {"reason": "A slip"})
    rating.refresh_from_db()
    assert rating.state == Rating.State.VOID
    assert "Restore" in text_of(owner, "ratings:data")
    history = text_of(owner, "ratings:rating", rating.pk)
    assert "A slip" in history and "Declared void" in history and "olga" in history
    assert "there is no answer to declare void" in owner.post(f"{url}void/", {"reason": "Again"}).content.decode()
    owner.post(f"{url}restore/", {"reason": "It was none"})
    rating.refresh_from_db()
    assert (rating.state, rating.value) == (Rating.State.SUBMITTED, 1)


def test_places_go_back_to_the_pool(owner, olga, bob, carol):
    images = GeneratedImageFactory.create_batch(8)
    pool = {"overlap_target": 1}
    readers = [(bob, 3), (carol, 1)]
    study = create_study(name="Pool", images=images, readers=readers, created_by=olga, protocol=pool)
    draw_places(study=study, reader=bob)
    assert "8 images" in text_of(owner, "ratings:study", study.public_id)
    url = reverse("ratings:study-places", args=[study.public_id])
    assert "8 places of bob are back" in owner.post(url, {"reader": bob.pk}, follow=True).content.decode()
    assert not Assignment.objects.filter(study=study, released_at=None).exists()
    draw_places(study=study, reader=carol)
    assert Assignment.objects.filter(study=study, reader=carol, released_at=None).count() == 8
    assert "does not read the study" in owner.post(url, {"reader": olga.pk}, follow=True).content.decode()


def test_where_everybody_reads_everything_nothing_is_given_back(owner, own_study, bob):
    assert "Places not answered" not in text_of(owner, "ratings:study", own_study.public_id)
    url = reverse("ratings:study-places", args=[own_study.public_id])
    assert "no open pool" in owner.post(url, {"reader": bob.pk}, follow=True).content.decode()


# Whose ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["bob", "other_owner"])
def test_what_is_another_s_does_not_exist(who, signed_in, own_study, rate, bob):
    person = StudyOwnerFactory() if who == "other_owner" else bob
    rating = rate(own_study.assignments.first(), 2)
    client, study = signed_in(person), own_study.public_id
    for name in ("study-protocol", "study-images", "study-images-add", "study-agreement", "study-image-grades"):
        assert client.get(reverse(f"ratings:{name}", args=[study])).status_code == 404, name
    for name in ("study-protocol", "study-images", "study-places", "study-readers", "study-state"):
        assert client.post(reverse(f"ratings:{name}", args=[study])).status_code == 404, name
    assert client.get(reverse("ratings:rating", args=[rating.pk])).status_code == 404
    for name in ("rating-void", "rating-restore"):
        assert client.post(reverse(f"ratings:{name}", args=[rating.pk]), {"reason": "x"}).status_code == 404
    rating.refresh_from_db()
    assert rating.state == Rating.State.SUBMITTED


def test_an_owner_sees_own_studies_and_their_ratings_only(owner, own_study, rate, bob, alice):
    other = create_study(name="Not olga's", images=GeneratedImageFactory.create_batch(1), readers=[(bob, 1)])
    rate(own_study.assignments.first(), 1)
    rate(other.assignments.first(), 3)
    listed = text_of(owner, "ratings:studies")
    assert "Own" in listed and "Not olga" not in listed and "New study" in listed
    assert text_of(owner, "ratings:data").count('class="prompt-cell"') == 1
    assert text_of(owner, "ratings:data", study=str(other.public_id)).count('class="prompt-cell"') == 0
    assert owner.get(reverse("ratings:study", args=[other.public_id])).status_code == 404


def test_readers_find_no_page_of_owners(signed_in, bob):
    client, image = signed_in(bob), GeneratedImageFactory(prompt=PromptFactory())
    for name in ("study-new", "study-planned", "gold", "data"):
        assert client.get(reverse(f"ratings:{name}")).status_code == 404, name
    assert client.post(reverse("ratings:image-gold", args=[image.public_id]), {"grade": "1"}).status_code == 404
    assert client.get(image.get_absolute_url()).status_code == 404
    assert client.get(f"{image.get_absolute_url()}file/").status_code == 404
    assert not GoldGrade.objects.exists()


def test_a_known_grade_that_is_in_use_stays_and_the_page_says_so(owner, own_study):
    """All of the marked images or none."""
    url = reverse("ratings:study-images", args=[own_study.public_id])
    first, second = own_study.study_images.select_related("image").order_by("pk")[:2]
    set_gold(image=second.image, grade=1, set_by=None)
    own_study.study_images.filter(pk=second.pk).update(role="gold")
    marked = [str(entry.image.public_id) for entry in (first, second)]
    reply = owner.post(url, {"images": marked, "grade": "3"})
    assert reply.status_code == 422 and "is in use in Own" in reply.content.decode()
    assert list(GoldGrade.objects.values_list("image", "grade")) == [(second.image_id, 1)]


def test_who_has_only_the_training_round_open_has_nothing_to_give_back(owner, own_study, gold, olga):
    revise_protocol(study=own_study, created_by=olga, overlap_target=2, num_training_images=3)
    reader = UserFactory(username="newcomer")
    enrol_reader(study=own_study, reader=reader, expert_level=1)
    names = [row["name"] for row in owner.get(own_study.get_absolute_url()).context["open_places"]]
    assert names == ["bob"]


def test_whatever_the_api_takes_the_page_keeps(owner, own_study, olga):
    revise_protocol(study=own_study, created_by=olga, overlap_target=500, scale_texts={1: "x" * 300})
    form = owner.get(reverse("ratings:study-protocol", args=[own_study.public_id])).context["form"]
    shown = {name: form[name].value() for name in form.fields if form[name].value() is not None}
    again = type(form)(shown, protocol=own_study.protocol, is_frozen=False)
    assert again.is_valid() and again.changes() == {}, again.errors
