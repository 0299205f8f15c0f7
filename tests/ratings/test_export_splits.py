"""Sides for learning elsewhere: whole groups, by chance, the same again."""

import csv
import uuid
from collections import Counter

import pytest

from ratings.export.splits import side_of, split_rows
from ratings.services import freeze_images, rerun_export


def image(number: int, patient: str = "", prompt: int = 0) -> tuple:
    return uuid.UUID(int=number), patient, prompt


def test_patients_and_prompts_chain_groups_together():
    images = [
        image(1, "a", 1),
        image(2, "", 2),
        image(3, "b", 3),
        image(4, "b", 1),  # joins b's images with prompt 1
        image(5, "", 2),
        image(6, "", 4),
    ]
    rows = list(split_rows(images, seed=5))
    assert [identity.int for identity, _, _ in rows] == [1, 2, 3, 4, 5, 6]
    assert [group.int for _, group, _ in rows] == [1, 2, 1, 1, 2, 6]
    assert len({(group, side) for _, group, side in rows}) == 3


def test_images_without_a_patient_are_not_one_patient():
    rows = list(split_rows([image(number, "", number) for number in range(50)], seed=1))
    assert len({group for _, group, _ in rows}) == 50


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_sides_have_their_shares_and_follow_from_the_seed(seed):
    groups = [uuid.UUID(int=number) for number in range(20_000)]
    sides = Counter(side_of(group, seed) for group in groups)
    shares = {side: number / len(groups) for side, number in sides.items()}
    # 5 standard deviations of a binomial share
    assert shares == pytest.approx({"train": 0.70, "validation": 0.15, "test": 0.15}, abs=5 * (0.21 / 20_000) ** 0.5)
    assert [side_of(group, seed + 1) for group in groups[:100]] != [side_of(group, seed) for group in groups[:100]]


def test_they_are_a_file_of_the_images_export(study, images):
    export = freeze_images(study=study)
    with export.path_of("splits").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_uuid"] for row in rows] == [str(image.public_id) for image in images]
    assert {row["split"] for row in rows} <= {"train", "validation", "test"}
    assert not rerun_export(export=export).differing_files
