"""Raters, patients, seeds and known grades reach training through the tidy table beside the ratings CSV."""

import itertools
import uuid

import numpy as np
import pytest
import torch

from medsyn.artifacts import file_sha256
from ratings.agreement.rater_model import PRIOR_ACCURACY, fit_rater_model
from ratings.csv_schema import (
    TRAINABLE_KINDS,
    RatingsCSVError,
    read_ratings_file,
    read_tidy_file,
    tidy_path,
    write_ratings,
)
from ratings.export.files import files_beside
from ratings.models import Assignment
from ratings.services import create_study, freeze_export, set_gold, submit_rating
from tests.factories import GeneratedImageFactory, PromptFactory
from tests.training.rlhf_files import PROMPTS, SIZE, write_ratings_file, write_rows, write_tidy
from training.rlhf import labels as rlhf_labels
from training.rlhf.config import RaterSettings
from training.rlhf.dataset import load_rated_images, rater_levels, soft_labels, split_images
from training.rlhf.labels import CALIBRATION_FOLD, HELD_OUT_RATERS, choose_raters, make_targets
from training.rlhf.splits import SplitError, connected_groups, split_groups


def load(path, **settings):
    return load_rated_images(path, image_size=SIZE, settings=RaterSettings(**settings))


@pytest.fixture
def ratings_file(tmp_path):
    """30 images, three ratings each."""
    return write_ratings_file(tmp_path, images=30, ratings=3)


# --- which table belongs to a file ---


def test_raters_are_those_of_the_table_beside_the_file(ratings_file):
    write_tidy(ratings_file)
    rated = load(ratings_file)
    assert rated.raters.tolist() == ["R-0", "R-1", "R-2"] * 30
    assert rated.seen.rater_source == "tidy file"
    assert rated.seen.ratings_file_sha256 == file_sha256(ratings_file)
    assert rated.seen.tidy_file_sha256 == file_sha256(tidy_path(ratings_file))
    _, model, names = soft_labels(rated, expert_weights=True)
    assert names == ("R-0", "R-1", "R-2")
    assert model.overlap.tolist() == [30, 30, 30]


def test_without_a_table_raters_are_their_levels(ratings_file, caplog):
    caplog.set_level("INFO")
    rated = load(ratings_file)
    assert set(rated.raters) == {"level 1", "level 2", "level 3"}
    assert rated.seen.tidy_file_sha256 is None
    assert "ratings_tidy.csv" in caplog.text


@pytest.mark.parametrize("spoil", ["swap", "drop", "regrade", "column"])
def test_a_table_of_other_ratings_is_not_used_and_the_log_says_so(ratings_file, spoil, caplog):
    path = write_tidy(ratings_file)
    lines = path.read_text().splitlines()
    rows = read_ratings_file(ratings_file)
    if spoil == "swap":
        lines[1], lines[-1] = lines[-1], lines[1]
    elif spoil == "drop":
        lines.pop()
    elif spoil == "regrade":
        lines[1] = lines[1].replace(f",{rows[0].rating},", f",{4 - rows[0].rating if rows[0].rating != 2 else 3},", 1)
    else:
        lines[0] = lines[0].replace("gold_grade", "golden_grade")
    path.write_text("\n".join(lines) + "\n")
    rated = load(ratings_file)
    assert rated.seen.rater_source == "expert levels"
    assert "not used" in caplog.text
    assert str(path) in caplog.text


def test_rows_that_nothing_may_learn_from_are_refused_with_their_line(ratings_file):
    """The second line of defence: a CSV made by hand from all rows of the table."""
    rows = read_ratings_file(ratings_file)
    extra = [
        {"like": 0, "assignment_kind": "repeat", "occurrence": 2},
        {"like": 4, "assignment_kind": "calibration", "image_path": "calibration.png"},
        {"like": 8, "assignment_kind": "training", "image_path": "taught.png"},
    ]
    path = write_tidy(ratings_file, extra=extra)
    every_row = [row.rating for row in read_tidy_file(path)]
    assert len(every_row) == 93
    write_rows(ratings_file, every_row)
    with pytest.raises(RatingsCSVError) as caught:
        load(ratings_file)
    faults = caught.value.faults
    assert [fault.split(":")[0] for fault in faults] == ["line 92", "line 93", "line 94"]
    assert [kind in fault for kind, fault in zip(("repeat", "calibration", "training"), faults, strict=True)] == [
        True
    ] * 3
    write_rows(ratings_file, rows)
    assert load(ratings_file).seen.left_out == {"repeat": 1, "calibration": 1, "training": 1, "calibration_image": 3}


def test_an_image_that_somebody_rated_for_calibration_teaches_by_nobodys_rating(ratings_file):
    write_tidy(ratings_file, extra=[{"like": 0, "assignment_kind": "calibration", "reader": "R-9"}])
    rated = load(ratings_file)
    assert len(rated) == 29
    assert file_sha256(ratings_file.parent / "0.png") not in rated.image_ids
    assert rated.seen.left_out == {"calibration": 1, "calibration_image": 3}


def test_a_file_that_is_not_the_one_that_was_rated_is_refused(ratings_file):
    write_tidy(ratings_file)
    (ratings_file.parent / "3.png").write_bytes((ratings_file.parent / "4.png").read_bytes())
    with pytest.raises(RatingsCSVError, match=r"line 11: 3.png is not the file that was rated"):
        load(ratings_file)


def test_broken_rows_of_a_table_are_told_with_their_lines(ratings_file):
    path = write_tidy(ratings_file, [{"occurrence": "first"}, {"gold_grade": 4}, {"reader": ""}])
    with pytest.raises(RatingsCSVError) as caught:
        read_tidy_file(path)
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["line 2", "line 3", "line 4"]


def test_the_table_lies_where_an_export_puts_it(tmp_path):
    for name in ("ratings.csv", "x.csv"):
        assert tidy_path(tmp_path / name) == files_beside(tmp_path / name)["tidy"]
    assert set(TRAINABLE_KINDS) == set(Assignment.TRAINABLE)


# --- known grades ---


def test_known_grades_enter_as_a_rater_who_is_always_right(ratings_file):
    write_tidy(ratings_file, [{"gold_grade": 1}] * 3 + [{}] * 3 + [{"gold_grade": 3}] * 3)
    rated = load(ratings_file)
    assert rated.known.tolist() == [1, 0, 3] + [0] * 27
    labels, model, _ = soft_labels(rated, expert_weights=True)
    assert labels[0].tolist() == [1, 0, 0]
    assert labels[2].tolist() == [0, 0, 1]
    # The same by the model itself, one call with indices made here.
    readers = np.array([int(name[2:]) for name in rated.raters])
    counts = np.array([[((readers == j) & (rated.levels == level)).sum() for level in (1, 2, 3)] for j in range(3)])
    accuracies = np.array([PRIOR_ACCURACY[1 + int(row.argmax())] for row in counts])
    known = np.array([1, 0, 3] + [0] * 27)
    expected = fit_rater_model(rated.item_of_rating, readers, rated.grades, accuracies, num_images=30, known=known)
    assert np.allclose(model.posterior, expected.posterior)
    assert np.allclose(model.confusion, expected.confusion)


def test_two_known_grades_of_one_image_are_refused(ratings_file):
    write_tidy(ratings_file, [{"gold_grade": 1}, {"gold_grade": 2}])
    with pytest.raises(RatingsCSVError, match=r"0.png has two known grades: 1 \(line 2\) and 2 \(line 3\)"):
        load(ratings_file)


# --- the split ---


def neighbours_by_brute_force(keys) -> list[set[int]]:
    """By item, all items that can be reached over shared keys."""
    reached = []
    for start in range(len(keys)):
        group = {start}
        while True:
            more = {item for item in range(len(keys)) if any(set(keys[item]) & set(keys[other]) for other in group)}
            if more <= group:
                break
            group |= more
        reached.append(group)
    return reached


def test_groups_are_connected_over_shared_keys():
    rng = np.random.default_rng(3)
    keys = [[f"k{key}" for key in rng.integers(0, 60, rng.integers(1, 3))] for _ in range(50)]
    groups = connected_groups(keys)
    for item, reached in enumerate(neighbours_by_brute_force(keys)):
        assert {other for other in range(50) if groups[other] == groups[item]} == reached


@pytest.mark.parametrize("seed", range(20))
def test_no_group_is_on_two_sides_and_sides_keep_their_share(seed):
    rng = np.random.default_rng(seed)
    groups = np.unique(rng.integers(0, 60, 200), return_inverse=True)[1]
    kinds = [("oct", "chest_ct", "brain_mri")[group % 3] for group in groups]
    names = [f"{number:03}" for number in rng.permutation(200)]
    split = split_groups(groups, kinds, names, seed=seed)
    sides = [side.tolist() for side in (split.train, split.calibration, split.held_out)]
    assert sorted(itertools.chain(*sides)) == list(range(200))
    for one, other in itertools.combinations(sides, 2):
        assert not {groups[item] for item in one} & {groups[item] for item in other}
    assert 25 <= len(sides[2]) <= 43
    assert 8 <= len(sides[1]) <= 23


def test_images_of_a_patient_or_of_a_prompt_and_seed_are_on_one_side(tmp_path):
    path = write_ratings_file(tmp_path, images=60, ratings=1)
    # Each seed is drawn three times under every prompt; every seventh image is of patient P0 or P1.
    facts = [{"seed": number // 15, "patient": f"P{number % 2}" if number % 7 == 0 else ""} for number in range(60)]
    write_tidy(path, facts)
    rated = load(path)
    keys = [
        [(number % len(PROMPTS), number // 15)] + ([f"P{number % 2}"] if number % 7 == 0 else [])
        for number in range(60)
    ]
    for seed in range(10):
        split = split_images(rated, seed=seed)
        side = {item: name for name in ("train", "calibration", "held_out") for item in getattr(split, name).tolist()}
        for one, other in itertools.combinations(range(60), 2):
            if set(keys[one]) & set(keys[other]):
                assert side[one] == side[other]


def test_images_that_all_belong_together_cannot_be_split(ratings_file):
    write_tidy(ratings_file, [{"patient": "P0"}] * 90)
    with pytest.raises(SplitError, match="other patients, prompts or seeds"):
        split_images(load(ratings_file), seed=0)


# --- raters who choose the epoch ---


def targets_of(path, *, hold_out_raters=True, seed=0):
    rated = load(path)
    split = split_images(rated, seed=0)
    return rated, make_targets(
        rated, split, expert_weights=True, image_prior=True, hold_out_raters=hold_out_raters, seed=seed
    )


@pytest.fixture
def many_raters(tmp_path, monkeypatch):
    """240 images, each rated by three of six raters, two of each level; a dozen ratings may choose the epoch."""
    monkeypatch.setattr(rlhf_labels, "MIN_VALIDATION_RATINGS", 5)
    path = write_ratings_file(tmp_path, images=240, ratings=3)
    rows = read_ratings_file(path)
    readers = [(number + turn * 2 + number // 6) % 6 for number in range(240) for turn in range(3)]
    levelled = [
        type(row)(row.image_path, row.rating, row.modality, 1 + reader // 2, row.prompt)
        for row, reader in zip(rows, readers, strict=True)
    ]
    write_rows(path, levelled)
    write_tidy(path, [{"reader": f"R-{reader}"} for reader in readers])
    return path


def test_labels_of_training_images_never_use_a_held_out_raters_rating(many_raters):
    rated, targets = targets_of(many_raters)
    chosen = targets.validation.raters
    assert targets.validation.source == HELD_OUT_RATERS
    assert len(chosen) == 1  # a fifth of six
    is_chosen = np.isin(rated.raters, chosen)
    rows = read_ratings_file(many_raters)
    spoilt = [
        type(row)(row.image_path, 1 if held_out else row.rating, row.modality, row.expert_level, row.prompt)
        for row, held_out in zip(rows, is_chosen, strict=True)
    ]
    write_rows(many_raters, spoilt)
    write_tidy(many_raters, [{"reader": name} for name in rated.raters])
    _, other = targets_of(many_raters)
    assert other.validation.raters == chosen
    train = targets.split.train
    assert (targets.labels[train] == other.labels[train]).all()
    assert not (targets.labels[targets.split.calibration] == other.labels[targets.split.calibration]).all()


def test_held_out_raters_are_measured_by_the_ratings_they_gave_in_the_fold(many_raters):
    rated, targets = targets_of(many_raters)
    validation = targets.validation
    assert set(validation.items.tolist()) <= set(targets.split.calibration.tolist())
    for item, shares in zip(validation.items.tolist(), validation.labels.tolist(), strict=True):
        given = rated.grades[(rated.item_of_rating == item) & np.isin(rated.raters, validation.raters)]
        assert shares == pytest.approx([(given == grade).mean() for grade in (1, 2, 3)])
    everybody = {choose_raters(rated, targets.split, seed=seed) for seed in range(12)}
    assert everybody == {("R-0",), ("R-1",)}  # the seed chooses, among the lowest level where all are of one size


def test_what_held_out_raters_said_is_likeliest_where_the_network_is_right(many_raters):
    """A careless rater must not make unsure networks look better than right ones."""
    rated, targets = targets_of(many_raters)
    observed = targets.validation.observed
    model, number = targets.raters, targets.rater_names.index(targets.validation.raters[0])
    good = torch.linspace(0.05, 0.95, len(rated))
    poor = model.confusion[number, :, 0]
    if_not = (poor[1] * model.prevalence[1] + poor[2] * model.prevalence[2]) / (1 - model.prevalence[0])
    losses = []
    for item, grade, rater in zip(rated.item_of_rating, rated.grades, rated.raters, strict=True):
        if rater in targets.validation.raters and item in targets.split.calibration.tolist():
            says_poor = (1 - good[item].item()) * poor[0] + good[item].item() * if_not
            losses.append(-np.log(says_poor if grade == 1 else 1 - says_poor))
    assert observed.negative_log_likelihood(good) == pytest.approx(np.mean(losses), rel=1e-5)
    # 4000 ratings by a rater who is right three times in four: the truth is likelier than what the ratings suggest.
    torch.manual_seed(0)
    is_poor = torch.arange(4000) % 2 == 0
    says_poor = torch.where(torch.rand(4000) < 0.75, is_poor, ~is_poor).float()
    careless = rlhf_labels.Observed(
        torch.arange(4000), says_poor, torch.full((4000,), 0.75), torch.full((4000,), 0.25)
    )
    sure = torch.where(is_poor, 0.02, 0.98)
    as_rated = torch.where(is_poor, 0.25, 0.75)
    assert careless.negative_log_likelihood(sure) < careless.negative_log_likelihood(as_rated)


def test_a_training_image_that_lost_its_only_rating_leaves_training(tmp_path, monkeypatch):
    monkeypatch.setattr(rlhf_labels, "MIN_VALIDATION_RATINGS", 5)
    path = write_ratings_file(tmp_path, images=200, ratings=3)
    rows = [type(row)(row.image_path, row.rating, row.modality, 2, row.prompt) for row in read_ratings_file(path)]
    write_rows(path, rows)
    # Four raters share all images but every twentieth, which one of them rated alone.
    readers = [(number + turn) % 4 if number % 20 else 0 for number in range(200) for turn in range(3)]
    write_tidy(path, [{"reader": f"R-{reader}"} for reader in readers])
    for seed in range(8):
        rated, targets = targets_of(path, seed=seed)
        alone = {item for item in range(200) if item % 20 == 0} & set(split_images(rated, seed=0).train.tolist())
        if targets.validation.raters == ("R-0",):
            assert targets.num_lost == len(alone) > 0
            assert not alone & set(targets.split.train.tolist())
            break
    else:
        pytest.fail("no seed held out R-0")


@pytest.mark.parametrize(
    ("readers", "ratings", "reason"),
    [
        (None, 3, "not known"),
        (lambda image, turn: turn, 2, "2 raters are fewer than 3"),
        (lambda image, turn: turn, 3, "ratings of the calibration fold, fewer than 30"),
        (lambda image, turn: image % 5, 1, "too few"),
        (lambda image, turn: (image + turn) % 5, 2, "too few"),
        (lambda image, turn: (image if image % 4 else turn) % 5, 3, "were rated by held-out raters only"),
    ],
)
def test_the_fold_chooses_where_raters_cannot_be_held_out(tmp_path, readers, ratings, reason):
    path = write_ratings_file(tmp_path, images=600 if reason == "too few" else 200, ratings=ratings)
    if readers:
        count = len(read_ratings_file(path)) // ratings
        write_tidy(
            path, [{"reader": f"R-{readers(image, turn)}"} for image in range(count) for turn in range(ratings)]
        )
    rated, targets = targets_of(path)
    validation = targets.validation
    assert validation.source == CALIBRATION_FOLD
    assert reason in validation.reason
    assert validation.items.tolist() == targets.split.calibration.tolist()
    labels, _, _ = soft_labels(rated, expert_weights=True)
    assert (targets.labels == labels).all()


def test_without_early_stopping_every_rater_teaches(many_raters):
    rated, targets = targets_of(many_raters, hold_out_raters=False)
    labels, _, _ = soft_labels(rated, expert_weights=True)
    assert (targets.labels == labels).all()
    assert targets.validation.source == CALIBRATION_FOLD


# --- from a study, through an export ---


@pytest.fixture
def export(db, bob, carol):
    """A study with places of every kind, all rated by two readers, exported."""
    prompts = [PromptFactory(text=f"Chest X-ray: finding {number}") for number in range(4)]
    images = [GeneratedImageFactory(prompt=prompts[number % 4]) for number in range(40)]
    for number in range(30):
        set_gold(image=GeneratedImageFactory(prompt=prompts[number % 4]), grade=1 + number % 3, set_by=None)
    for number in range(12):
        GeneratedImageFactory(imported=True, is_real=True, patient=f"P{number}", prompt=prompts[number % 4])
    study = create_study(
        name="Every kind",
        images=images,
        readers=[(bob, 3), (carol, 1)],
        order_seed=5,
        protocol={
            "repeat_share": 0.2,
            "repeat_distance": 5,
            "gold_share": 0.2,
            "real_share": 0.1,
            "calibration_share": 0.25,
            "num_training_images": 6,
        },
    )
    rng = np.random.default_rng(0)
    for place in study.assignments.order_by("position", "reader_id"):
        submit_rating(assignment=place, reader=place.reader, value=int(rng.integers(1, 4)), client_uuid=uuid.uuid4())
    return study, freeze_export(study=study)


def test_training_sees_main_and_gold_places_of_a_study_and_no_other(export):
    study, files = export
    rated = load_rated_images(files.path, image_size=16, settings=RaterSettings())
    places = list(study.assignments.select_related("image", "reader"))
    kinds = {kind: [place for place in places if place.kind == kind] for kind in Assignment.Kind.values}
    assert all(kinds.values()), "the study must have places of every kind"
    expected = sorted((place.image.sha256, place.rating.value) for place in kinds["main"] + kinds["gold"])
    seen = sorted(
        (rated.image_ids[item], int(grade)) for item, grade in zip(rated.item_of_rating, rated.grades, strict=True)
    )
    assert seen == expected
    for kind in ("calibration", "real", "training"):
        assert not {place.image.sha256 for place in kinds[kind]} & set(rated.image_ids)
    counts = {kind: len(kinds[kind]) for kind in ("repeat", "calibration", "real", "training")}
    assert rated.seen.left_out == counts
    assert rated.seen.ratings_file_sha256 == files.sha256
    assert len(set(rated.raters)) == 2
    assert not {"bob", "carol"} & set(rated.raters)
    gold = {place.image.sha256: place.image.gold.grade for place in kinds["gold"]}
    assert {sha256: grade for sha256, grade in zip(rated.image_ids, rated.known, strict=True) if grade} == gold


def test_a_csv_of_all_rows_of_the_studys_table_is_refused(export, tmp_path):
    _, files = export
    table = read_tidy_file(files.path_of("tidy"))
    with files.path.open("w", newline="", encoding="utf-8") as file:
        write_ratings(file, [row.rating for row in table])
    refused = sum(not row.is_trainable for row in table)
    with pytest.raises(RatingsCSVError) as caught:
        load_rated_images(files.path, image_size=16, settings=RaterSettings())
    assert len(caught.value.faults) == refused > 0


def test_the_table_of_an_export_has_the_columns_that_training_reads(export):
    study, files = export
    rows = read_tidy_file(files.path_of("tidy"))
    places = {(place.image.sha256, place.occurrence, place.kind): place for place in study.assignments.all()}
    assert len(rows) == study.assignments.count()
    for row in rows:
        image = places[row.image_sha256, row.occurrence, row.assignment_kind].image
        assert (row.seed, row.patient, row.prompt) == (image.seed, image.patient, image.prompt.text)
        assert row.gold_grade == (image.gold.grade if hasattr(image, "gold") else 0)


def test_an_image_prior_is_read_with_the_ratings_that_teach(many_raters):
    """Bayes by hand on an image that two raters who teach have rated; the third is held out."""
    rated, targets = targets_of(many_raters)
    held_out = targets.validation.raters
    assert held_out and targets.relabel is not None
    teaches = ~np.isin(rated.raters, held_out)
    prior = torch.from_numpy(np.random.default_rng(0).dirichlet([1, 1, 1], len(rated))).float()
    labels = targets.relabel(prior)
    names = np.unique(rated.raters)
    model = fit_rater_model(
        rated.item_of_rating[teaches],
        np.searchsorted(names, rated.raters[teaches]),
        rated.grades[teaches],
        np.array([PRIOR_ACCURACY[level] for level in rater_levels(rated).tolist()]),
        num_images=len(rated),
        image_prior=prior.double().numpy(),
    )
    item = int(targets.split.train[0])
    by_hand = prior[item].double().numpy()
    for row in np.flatnonzero(teaches & (rated.item_of_rating == item)):
        by_hand = by_hand * model.confusion[np.searchsorted(names, rated.raters[row]), :, rated.grades[row] - 1]
    assert labels[item].numpy() == pytest.approx(by_hand / by_hand.sum(), abs=1e-5)
