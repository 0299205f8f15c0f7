"""Known grades, and gold and real images mixed into studies."""

from collections import Counter

import pytest

from generation.models import GeneratedImage
from ratings.models import GoldGrade
from ratings.services import StudyError, add_images, clear_gold, create_study, set_gold
from tests.factories import GeneratedImageFactory


@pytest.fixture
def gold_images(many_images, alice):
    """``gold_images(12, kind="OCT")``: with grades 1, 2, 3 in turn."""

    def make(number: int, **fields):
        images = many_images(number, **fields)
        GoldGrade.objects.bulk_create(
            GoldGrade(image=image, grade=1 + index % 3, rationale=f"because {index}", set_by=alice)
            for index, image in enumerate(images)
        )
        return images

    return make


def roles(study, block=0) -> Counter:
    return Counter(study.study_images.filter(block=block).values_list("role", flat=True))


def test_a_grade_is_set_changed_and_forgotten(db, alice):
    image = GeneratedImageFactory()
    assert set_gold(image=image, grade=1, set_by=alice, rationale=" planted noise ").rationale == "planted noise"
    gold = set_gold(image=image, grade=3, set_by=alice)
    assert (GoldGrade.objects.get(), gold.grade, gold.rationale) == (gold, 3, "")
    clear_gold(image=image)
    clear_gold(image=image)
    assert not GoldGrade.objects.exists()
    for bad in (0, 4, "1", None):
        with pytest.raises(StudyError, match="must be 1"):
            set_gold(image=image, grade=bad, set_by=alice)


def test_a_grade_in_use_stays(gold_images, many_images, alice):
    images = gold_images(2)
    create_study(name="Uses it", images=[*many_images(3), images[0]])
    with pytest.raises(StudyError, match="in use in Uses it"):
        clear_gold(image=images[0])
    with pytest.raises(StudyError, match="in use in Uses it"):
        set_gold(image=images[0], grade=3, set_by=alice)
    assert set_gold(image=images[0], grade=1, set_by=alice, rationale="said better").rationale == "said better"
    clear_gold(image=images[1])


def test_gold_and_real_images_are_mixed_in_by_their_shares(many_images, gold_images, bob):
    gold, real, other_kind = gold_images(30), many_images(30, is_real=True), gold_images(9, kind="OCT")
    given = many_images(70)
    study = create_study(
        name="Mixed", images=given, readers=[(bob, 2)], order_seed=5, protocol={"gold_share": 0.1, "real_share": 0.2}
    )
    assert roles(study) == {"main": 70, "gold": 10, "real": 20}
    chosen = {entry.image_id: entry.role for entry in study.study_images.all()}
    assert {key for key, role in chosen.items() if role == "gold"} <= {image.pk for image in gold}
    assert {key for key, role in chosen.items() if role == "real"} <= {image.pk for image in real}
    assert not {image.pk for image in other_kind} & chosen.keys()
    assert dict(study.assignments.values_list("image_id", "kind")) == chosen
    # The order in which they are stored tells nothing: the last third holds about a third of those mixed in.
    stored = list(study.study_images.order_by("pk").values_list("role", flat=True))
    assert 3 <= sum(role != "main" for role in stored[-34:]) <= 18


def test_the_draw_follows_from_the_seed(many_images, gold_images):
    gold_images(30)
    given = many_images(40)
    sets = [
        {
            entry.image_id
            for entry in create_study(
                name=f"Seed {number}", images=given, order_seed=seed, protocol={"gold_share": 0.2}
            ).study_images.filter(role="gold")
        }
        for number, seed in enumerate((1, 1, 2))
    ]
    assert sets[0] == sets[1] != sets[2] and len(sets[0]) == 10


def test_given_images_that_are_gold_or_real_count_as_such(many_images, gold_images):
    gold, real = gold_images(5), many_images(20, is_real=True)
    pool = gold_images(20)
    both = many_images(1, is_real=True)
    GoldGrade.objects.create(image=both[0], grade=3)
    study = create_study(
        name="Counted",
        images=[*many_images(70), *gold, *real, *both],
        protocol={"gold_share": 0.1, "real_share": 0.2, "calibration_share": 0.5},
    )
    # 70 main images want a block of 100: 10 gold, of which 5 are there; 20 real, and 21 are given.
    assert roles(study) == {"main": 35, "calibration": 35, "gold": 10, "real": 21}
    assert study.study_images.filter(role="gold", image__in=pool).count() == 5
    assert study.study_images.get(image=both[0]).role == "real"


def test_kinds_are_mixed_in_proportion(many_images, gold_images):
    gold_images(40)
    gold_images(40, kind="OCT")
    study = create_study(
        name="Two kinds", images=[*many_images(60), *many_images(20, kind="OCT")], protocol={"gold_share": 0.2}
    )
    kinds = Counter(study.study_images.filter(role="gold").values_list("image__prompt__kind", flat=True))
    assert kinds == {"chest_xray": 15, "oct": 5}


def test_a_block_is_mixed_in_as_many_queries_for_many_images_as_for_few(
    many_images, gold_images, bob, django_assert_max_num_queries
):
    gold_images(40)
    study = create_study(name="Counted", images=[], readers=[(bob, 2)], protocol={"gold_share": 0.2})
    images = [GeneratedImage.objects.get(pk=image.pk) for image in many_images(100)]
    with django_assert_max_num_queries(23):
        add_images(study=study, images=images)


def test_a_copy_of_a_training_image_is_shown_to_no_reader_in_any_role(many_images):
    copy = many_images(1)[0]
    GeneratedImage.objects.filter(pk=copy.pk).update(verdict="blocked", resembles={"name": "patient.png"})
    copy.refresh_from_db()
    study = create_study(name="Clean", images=many_images(3))
    with pytest.raises(StudyError, match=r"1 of the images .* copy images of patients"):
        add_images(study=study, images=[copy, *many_images(2)])
    with pytest.raises(StudyError, match="copy images of patients"):
        set_gold(image=copy, grade=3, set_by=None)
    assert study.study_images.count() == 3


def test_what_is_missing_is_said_and_nothing_is_added(many_images, gold_images):
    gold_images(3)
    with pytest.raises(StudyError, match=r"10 gold images in.*7 of kind Chest X-ray.*Mark more"):
        create_study(name="Poor", images=many_images(90), protocol={"gold_share": 0.1})
    study = create_study(name="Later", images=[], protocol={"real_share": 0.5})
    with pytest.raises(StudyError, match=r"4 real images in.*3 of kind Chest X-ray.*1 of kind OCT.*Import more"):
        add_images(study=study, images=[*many_images(3), *many_images(1, kind="OCT")])
    assert not study.study_images.exists()


def test_each_block_has_its_own_images_mixed_in(many_images, gold_images):
    gold_images(10)
    study = create_study(name="Blocks", images=many_images(20), protocol={"gold_share": 0.2})
    assert add_images(study=study, images=many_images(20)) == 25
    assert roles(study, 0) == roles(study, 1) == {"main": 20, "gold": 5}
    assert study.study_images.filter(role="gold").values("image").distinct().count() == 10


def test_the_api_sets_and_forgets_grades(gold_images, many_images, api, alice, bob):
    image, used = many_images(1)[0], gold_images(1)[0]
    create_study(name="Uses it", images=[used])
    client = api(alice)
    body = {"image": str(image.public_id), "grade": 2, "rationale": "by three experts"}
    assert client.post("/api/gold/", body, "json").json()["grade"] == 2
    assert client.post("/api/gold/", body | {"grade": 3}, "json").json()["grade"] == 3
    assert client.post("/api/gold/", body | {"grade": 4}, "json").status_code == 400
    assert client.get("/api/gold/").json()["count"] == 2
    assert client.delete(f"/api/gold/{used.public_id}/").status_code == 400
    assert client.delete(f"/api/gold/{image.public_id}/").status_code == 204
    assert client.delete(f"/api/gold/{image.public_id}/").status_code == 404
    assert api(bob).get("/api/gold/").status_code == 403
