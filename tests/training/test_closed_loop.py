"""The simulated closed loop: one scale for truth and panel, experts behind the API, figures, report, resumption."""

import json
import sqlite3
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from scipy.stats import norm
from scipy.stats import t as student

from generation.certificate import Promise
from generation.embedded_model import EMBEDDED_MODEL_DIR
from generation.models import GenerationJob
from ratings.models import Assignment, Rating, StudyImage
from tests.houses import DATABASE, copy_tests_database
from training import lifeline
from training.closed_loop import rounds as closed_loop_rounds
from training.closed_loop.process import environment
from training.closed_loop.reading import Room, count_rows, read_verdicts
from training.closed_loop.rounds import Rounds
from training.closed_loop.sources import PhantomSource, PipelineSource
from training.rlhf.trainer import SELECTOR_FILE
from training.simulation.experts import Expert, rate, rate_among, scores_among
from training.simulation.loop.arms import Judges, config_of, scores, train_on_shares, train_predecessors
from training.simulation.loop.curves import curves
from training.simulation.loop.figures import (
    Measured,
    Verdicts,
    equal_share_threshold,
    figures,
    no_verdicts,
    promise_of,
)
from training.simulation.loop.images import Encoded, LoopImages
from training.simulation.loop.panel import Panel, Truth
from training.simulation.loop.report import interval, markdown, read_results, summarise
from training.simulation.loop.settings import ARMS, LoopError, LoopFolder, LoopSettings

REFERENCE = np.linspace(-1, 0, 201)
TRUTH = Truth(REFERENCE)
SMALL = LoopSettings(rounds=2, images=24, fresh=30, unrated=30, repeat_share=0.0, epochs=2)


# --- the scale ---


def test_scores_among_others_are_those_of_the_ranks():
    quality = np.random.default_rng(0).normal(size=300)
    ours = scores_among(quality, quality)
    ranks = quality.argsort().argsort() + 1
    assert np.allclose(ours, norm.ppf(ranks / 301), atol=1e-9)
    assert scores_among(np.array([9.0]), quality) > ours.max(), "better than all of the reference"


def test_better_images_get_better_grades_only_on_the_fixed_scale():
    """Rated among themselves, good images are as often poor as any: an improvement could not show."""
    good = np.linspace(-0.3, 0, 400)
    expert = Expert(3, 0.0)
    relative = rate(good, expert, np.random.default_rng(0))
    fixed = rate_among(good, REFERENCE, expert, np.random.default_rng(0))
    assert abs((relative == 1).mean() - 0.3) < 0.08
    assert (fixed == 1).mean() < 0.05 and (fixed == 3).mean() > 0.8


def test_truth_marks_the_lower_and_upper_share_of_the_first_round():
    assert TRUTH.is_poor(REFERENCE).mean() == pytest.approx(0.3, abs=0.01)
    assert TRUTH.is_excellent(REFERENCE).mean() == pytest.approx(0.3, abs=0.01)
    assert not TRUTH.is_poor(np.linspace(-0.5, 0, 10)).any()


def test_an_expert_grades_an_image_alike_in_every_study_and_anew_at_the_second_showing():
    panel = Panel.draw("default", TRUTH, seed=4)
    first = [panel.grade(0, -0.6, image=f"2-{i}", showing=1) for i in range(60)]
    assert first == [panel.grade(0, -0.6, image=f"2-{i}", showing=1) for i in range(60)]
    assert first != [panel.grade(0, -0.6, image=f"2-{i}", showing=2) for i in range(60)]
    assert first != [panel.grade(1, -0.6, image=f"2-{i}", showing=1) for i in range(60)]


def test_the_pessimistic_panel_sees_less():
    def agreement(name: str) -> float:
        panel = Panel.draw(name, TRUTH, seed=1)
        told = [[panel.grade(e, q, image=str(i), showing=1) for i, q in enumerate(REFERENCE)] for e in (3, 5)]
        return float(np.corrcoef(told)[0, 1])

    assert agreement("pessimistic") < agreement("default") - 0.1


# --- settings ---


def test_settings_refuse_what_cannot_be_run():
    with pytest.raises(LoopError, match="no arm magic"):
        LoopSettings(arms=("magic",))
    with pytest.raises(LoopError, match="nothing to update"):
        LoopSettings(update_generator=True)
    with pytest.raises(LoopError, match="No settings of a loop: colour"):
        LoopSettings.from_dict({"colour": 1})
    assert LoopSettings.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL


def test_arms_without_a_study_rest_on_that_of_ours():
    assert LoopSettings().read_arms == ("published", "repaired", "ours")
    assert LoopSettings(arms=("none", "oracle")).read_arms == ("ours",)
    assert LoopSettings(arms=("repaired", "no-policy")).study_of("no-policy") == "ours"
    assert LoopSettings(arms=("none", "repaired")).study_of("none") == "repaired"


# --- figures ---


def images_of(quality: np.ndarray) -> LoopImages:
    number = len(quality)
    prompts = tuple(("Fundus: glaucoma, left eye", "OCT: macular hole")[i % 2] for i in range(number))
    pixels = np.random.default_rng(0).integers(0, 255, (number, 128, 128, 3), dtype=np.uint8)
    return LoopImages(tuple(f"0-{i}" for i in range(number)), pixels, prompts, quality, 12)


def verdicts_of(grades: list[tuple[int, ...]]) -> Verdicts:
    rows = [(image, reader, grade) for image, given in enumerate(grades) for reader, grade in enumerate(given)]
    image, reader, grade = np.array(rows).T
    return Verdicts(tuple(map(str, range(len(grades)))), tuple(grades), image, reader, grade)


def test_figures_of_a_release_are_counted_on_fresh_images():
    quality = np.linspace(-1, 0, 40)
    grades = [(1, 1, 2)] * 12 + [(3, 3, 2)] * 48
    calibration = np.linspace(0, 1, 60)
    given = Measured(
        images_of(quality), quality + 1, np.linspace(0, 1, 101), calibration, verdicts_of(grades), TRUTH, 0
    )
    found = figures(given, serve=0.5, promise=Promise(alpha=0.10, delta=0.10))
    served = quality[quality + 1 >= 0.5]
    assert found["served"]["images"] == len(served) == 20
    assert found["served"]["poor"] == 0 and found["served"]["excellent"] == pytest.approx((served > -0.3).mean())
    assert found["served"]["unet_evaluations_per_accepted"] == 24
    assert found["candidates"]["images"] == 40 and found["candidates"]["yield"] == 1
    assert found["candidates"]["poor"] == TRUTH.is_poor(quality).mean() > 0
    assert found["auc_poor"] == 1
    assert found["panel"] == {"poor": 0.0, "excellent": pytest.approx(2 / 3), "images": 30, "ratings": 90}
    assert found["copies"] is None and 0 <= found["served"]["diversity"] <= 1
    told = found["certificate"]
    assert told["certified"] and told["calibration_images"] == 60 and told["images"] == 32
    assert told["held"] == (told["poor"] <= 0.10)


def test_a_broken_promise_is_told():
    """A panel that calls nothing poor certifies everything; the gold quality knows better."""
    quality = np.linspace(-1, 0, 40)
    given = Measured(
        images_of(quality),
        np.linspace(1, 0, 40),
        np.linspace(0, 1, 101),
        np.linspace(0, 1, 60),
        verdicts_of([(3, 3, 3), (2, 3, 3)] * 30),
        TRUTH,
        0,
    )
    told = figures(given, serve=0.5, promise=Promise())["certificate"]
    assert told["certified"] and not told["held"] and told["poor"] == pytest.approx(0.3, abs=0.03)


def test_before_any_rating_everything_is_served_and_nothing_certified():
    quality = np.linspace(-1, 0, 40)
    given = Measured(images_of(quality), np.ones(40), np.ones(30), np.zeros(0), no_verdicts(), TRUTH, 0)
    found = figures(given, serve=0.5, promise=Promise())
    assert found["served"]["yield"] == 1 and found["served"]["poor"] == pytest.approx(0.3, abs=0.03)
    assert found["panel"] is None and found["certificate"] is None and found["agreement"] is None


def test_a_release_tested_alone_may_spend_all_of_delta():
    scores = np.linspace(0, 1, 60)
    verdicts = verdicts_of([(1, 1, 2)] * 12 + [(3, 3, 2)] * 48)
    quality = np.linspace(-1, 0, 40)
    given = Measured(images_of(quality), quality + 1, np.linspace(0, 1, 101), scores, verdicts, TRUTH, 0)
    found = figures(given, serve=0.5, promise=promise_of(0.1, 0.1, 4))
    assert found["certificate"]["spent_delta"] == pytest.approx(0.1 * 6 / (4 * np.pi) ** 2)
    assert found["certificate_alone"]["spent_delta"] == 0.1
    assert found["certificate_alone"]["certified"] and not found["certificate"]["certified"]


def test_each_further_release_spends_less_on_the_same_calibration_images():
    spent = [promise_of(0.1, 0.1, number).spent_delta for number in (1, 2, 3)]
    assert spent == pytest.approx([0.6 / np.pi**2 / number**2 for number in (1, 2, 3)])


def test_equal_shares_are_served_at_the_threshold_of_unrated_scores():
    unrated = np.random.default_rng(0).random(1000)
    assert (unrated >= equal_share_threshold(unrated, 0.3)).mean() == pytest.approx(0.3, abs=0.002)


# --- the reading room ---


@pytest.fixture
def room(db):
    """A room whose experts have 24 images to rate, 16 of them drawn at random, 8 chosen."""
    panel = Panel.draw("default", TRUTH, seed=0)
    room = Room("ours", SMALL, panel)
    source = PhantomSource(SMALL, 0)
    images = source.draw(4, 24)
    rows = source.rows(images)
    room.add(rows, rows[:16])
    known = {row.pk: (name, quality) for name, quality, row in zip(images.names, images.quality, rows, strict=True)}
    names = {(row.sha256, row.prompt.text): name for name, row in zip(images.names, rows, strict=True)}
    return room, images, rows, known, names


def test_experts_rate_over_the_api_and_the_export_is_the_applications(room, tmp_path):
    room, images, rows, known, names = room
    assert room.rate_all(known) == 24 * SMALL.ratings_per_image
    assert room.rate_all(known) == 0, "nothing is left to rate"
    assert Rating.objects.filter(is_simulated=True).count() == 72
    readers = Assignment.objects.values_list("reader", flat=True)
    assert len(set(readers)) > SMALL.ratings_per_image, "experts take turns"
    export = room.export(tmp_path / "export")
    assert export.has_simulated
    spent = count_rows(export.path)
    assert spent == {"training": 42, "calibration": 30, "repeats": 0}
    verdicts = read_verdicts(export.path, names)
    assert len(verdicts.images) == 10 and all(len(grades) == 3 for grades in verdicts.grades)
    assert set(verdicts.images) <= set(images.names[:16]), "calibration images are random draws"
    calibration = StudyImage.objects.filter(role=StudyImage.Role.CALIBRATION)
    assert {known[key][0] for key in calibration.values_list("image", flat=True)} == set(verdicts.images)


def test_an_export_that_was_cut_off_before_it_was_recorded_is_written_again(room, tmp_path):
    room, _, _, known, _ = room
    room.rate_all(known)
    file = tmp_path / "export" / "ratings.csv"
    assert room.exported(file) is None
    export = room.export(file.parent)
    assert room.exported(file) == export
    export.delete()  # its files stay
    assert room.exported(file) is None
    assert room.export(file.parent) == room.exported(file)


def test_arms_learn_from_the_export_what_they_say(room, tmp_path):
    """Tiny, but real: the predecessors' rule and plain shares are trained, and all arms judge."""
    room, images, _, known, _ = room
    room.rate_all(known)
    ratings = room.export(tmp_path / "export").path
    config = config_of(SMALL, seed=0)
    encoded = Encoded(images)
    repaired = train_predecessors(ratings, config, tmp_path / "repaired", as_published=False)
    written = (tmp_path / "repaired" / SELECTOR_FILE).stat().st_mtime_ns
    assert train_predecessors(ratings, config, tmp_path / "repaired", as_published=False) == repaired
    assert (tmp_path / "repaired" / SELECTOR_FILE).stat().st_mtime_ns == written, "what is there is not done again"
    published = train_predecessors(ratings, config, tmp_path / "published", as_published=True)
    ours = train_on_shares(ratings, config, tmp_path / "shares", generator=encoded.text_encoder)
    found = {
        "published": scores("published", published, encoded),
        "repaired": scores("repaired", repaired, encoded),
        **{arm: scores(arm, ours, encoded) for arm in ("ours", "no-policy", "no-lower-bound")},
    }
    assert all(((each >= 0) & (each <= 1)).all() and each.shape == (24,) for each in found.values())
    assert found["published"].mean() > found["repaired"].mean(), "as published every score is pushed up"
    assert (found["ours"] <= found["no-policy"]).all() and (found["ours"] <= found["no-lower-bound"]).all()
    assert np.array_equal(scores("oracle", Judges(), encoded), images.quality)


def test_scores_from_what_is_kept_are_those_of_the_networks(room, tmp_path):
    from generation.scoring.selector import Selector

    room, images, _, known, _ = room
    room.rate_all(known)
    judges = train_predecessors(
        room.export(tmp_path / "export").path, config_of(SMALL, seed=0), tmp_path / "run", as_published=False
    )
    direct = Selector.load(judges.selector_file).score(images.tensor.float() / 255, images.kind_slugs)
    assert np.allclose(scores("repaired", judges, Encoded(images)), direct.mean.numpy(), atol=1e-5)


def test_streams_are_the_same_however_they_are_drawn():
    whole = PhantomSource(SMALL, 3).draw(5, 12)
    source = PhantomSource(SMALL, 3)
    parts = [source.draw(5, 4), source.draw(5, 8, begin=4)]
    assert np.array_equal(np.concatenate([part.pixels for part in parts]), whole.pixels)
    assert sum((part.names for part in parts), ()) == whole.names
    assert not np.array_equal(PhantomSource(SMALL, 4).draw(5, 1).pixels, whole.pixels[:1])


def test_a_pipeline_draws_through_jobs_and_never_the_same_one_twice(db):
    """medsyn-tiny, two steps: what a folder, an updated generator's too, is drawn with."""
    drawing = LoopSettings(generator="medsyn-tiny", steps=2, arms=("none",))
    source = PipelineSource(drawing, 0, pipeline=EMBEDDED_MODEL_DIR, updated_after=1)
    images = source.draw(2, 3)
    assert len(set(images.prompts)) == 3 and images.unet_evaluations and images.pixels.shape == (3, 128, 128, 3)
    assert [row.prompt.text for row in source.rows(images)] == list(images.prompts)
    again = source.draw(2, 3)
    assert np.array_equal(again.pixels, images.pixels) and again.names == images.names
    job = GenerationJob.objects.get()
    assert job.pretrained_model == str(EMBEDDED_MODEL_DIR) and job.images.count() == 3
    assert job.seed == 200_600_000, "half a million beyond those of the first generator"


def test_what_an_update_made_draws_for_ours_alone_and_only_where_it_was_accepted(db, tmp_path, monkeypatch):
    given = {"images": 20, "fresh": 30, "unrated": 30, "arms": ("none", "ours"), "steps": 1}
    settings = LoopSettings(generator="medsyn-tiny", update_generator=True, rounds=2, **given)
    walk = Rounds(LoopFolder(tmp_path), settings, 0)
    (tmp_path / "update").mkdir()
    (tmp_path / "update" / "pipeline").symlink_to(EMBEDDED_MODEL_DIR)
    first = walk._source_for("ours")
    for outcome in ("refused", "accepted"):
        figures = {"accepted": outcome == "accepted"}
        decided = SimpleNamespace(figures=figures, path=tmp_path / "update")
        monkeypatch.setattr(closed_loop_rounds, "_finished", lambda name, start, decided=decided: decided)
        walk._update(1)
        assert (walk._source_for("ours") is first) == (outcome == "refused")
        assert walk._source_for("none") is first
    assert {job.pretrained_model for job in GenerationJob.objects.all()} == {
        "",
        str(tmp_path / "update" / "pipeline"),
    }
    fresh, old = walk._measuring_for("ours")[0].images, walk._measuring_for("none")[0].images
    assert len(fresh) == len(old) == 30 and not set(fresh.names) & set(old.names)


# --- report and command ---


def result(seed: int, arm: str, number: int, poor: float) -> dict:
    """A result file as the walk writes it."""
    tested = {"certified": True, "held": poor <= 0.1, "yield": 0.4} if number == 2 else {"certified": False}
    served = {"poor": poor, "excellent": 1 - poor, "yield": 0.5, "diversity": 0.3, "candidates_per_accepted": 2.0}
    return {
        "seed": seed,
        "arm": arm,
        "round": number,
        "auc_poor": 0.9,
        "served": served,
        "panel": None,
        "certificate": tested if number else None,
        "ratings": {"all": 100 * number},
    }


@pytest.fixture
def results() -> list[dict]:
    poor = {"none": 0.3, "repaired": 0.2, "ours": 0.1}
    return [
        result(seed, arm, number, poor[arm] * (1 if number == 0 else 0.9**number) + 0.01 * seed)
        for seed in range(3)
        for arm in poor
        for number in range(3)
    ]


LOOP = LoopSettings(rounds=2, arms=("none", "repaired", "ours"))


def test_intervals_are_students():
    values = [0.1, 0.14, 0.15, 0.2]
    found = interval(values)
    low, high = student.interval(0.95, 3, loc=np.mean(values), scale=np.std(values, ddof=1) / 2)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((np.mean(values), low, high))
    assert interval([0.5])["low"] is None


def test_the_report_compares_seed_by_seed_and_counts_certificates(results):
    summary = summarise(results, LOOP)
    ahead = summary["ours_ahead_of"]["repaired"][2]["served.poor"]
    assert ahead["mean"] == pytest.approx(-0.1 * 0.81) and ahead["high"] < 0, "what the seeds share cancels out"
    assert summary["round_by_round"]["ours"][0]["served.poor"]["mean"] == pytest.approx(-0.01)
    found = summary["certificates"]["ours"]
    assert found == {"tested": 6, "refused": 3, "held": 2, "broken": 1, "mean_yield": pytest.approx(0.4)}
    text = markdown(summary)
    assert text.count("simulated experts") > 5 and "no clinical evidence" in text
    assert all(ARMS[arm] in text for arm in LOOP.arms)


def test_the_report_says_what_came_of_generator_updates(results):
    told = {(0, 2): "accepted", (1, 2): "refused", (2, 2): "accepted"}
    for each in results:
        each["update"] = told.get((each["seed"], each["round"])) if each["arm"] == "ours" else None
    settings = LoopSettings(rounds=2, arms=LOOP.arms, generator="medsyn-tiny", update_generator=True)
    summary = summarise(results, settings)
    assert summary["updates"] == [{"decided": 3, "accepted": 2, "round": 2}]
    assert "| 2 | 3 | 2 |" in markdown(summary)
    assert summarise(results, LOOP)["updates"] == [] and "Updates of" not in markdown(summarise(results, LOOP))


def test_the_curves_are_an_svg_with_a_line_for_every_arm(results):
    root = ElementTree.fromstring(curves(summarise(results, LOOP)))
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    plots = [element for element in root.iter() if element.tag.endswith("}g")]
    assert len(plots) == 3 and len(lines) == 3 * 3, "figures that nobody has are left out"
    said = "".join(root.itertext())
    assert "Simulated experts" in said and ARMS["repaired"] in said


def test_results_are_read_as_far_as_they_are_there(results, tmp_path):
    folder = LoopFolder(tmp_path)
    for each in results[:5]:
        path = folder.result_file(each["seed"], each["arm"], each["round"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(each))
    assert len(read_results(folder, LOOP, range(3))) == 5
    assert summarise(read_results(folder, LOOP, range(3)), LOOP)["seeds"] == [0]


def test_a_seed_sees_nothing_of_the_users_settings(tmp_path):
    given = {"MEDSYN_DATABASE_URL": "postgres://mine", "MEDSYN_MODE": "production", "PATH": "/bin"}
    found = environment(LoopFolder(tmp_path), 7, given)
    assert "MEDSYN_DATABASE_URL" not in found and found["MEDSYN_MODE"] == "embedded" and found["PATH"] == "/bin"
    assert found["MEDSYN_VAR_DIR"] == str(tmp_path / "seed-007" / "var")
    assert found[lifeline.VARIABLE] == "stdin", "it ends with the command"
    keys = {environment(LoopFolder(tmp_path), seed, given)["MEDSYN_SECRET_KEY"] for seed in (7, 7, 8)}
    assert len(keys) == 2, "a seed's readers have the same pseudonyms every time"


def test_the_command_reports_what_is_there_and_refuses_other_settings(results, tmp_path, capsys):
    folder = LoopFolder(tmp_path)
    for each in results:
        path = folder.result_file(each["seed"], each["arm"], each["round"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(each))
    asked = {"output": tmp_path, "seeds": 3, "rounds": 2, "arms": ["ours", "none", "repaired"]}
    call_command("closed_loop", **asked)
    assert {path.name for path in tmp_path.glob("*.*")} >= {"report.json", "report.md", "curves.svg", "loop.json"}
    assert "Report" in capsys.readouterr().out
    with pytest.raises(CommandError, match="images differ"):
        call_command("closed_loop", **asked, images=40)


@pytest.mark.slow
def test_one_seed_walks_through_the_application_and_is_not_walked_again(db, tmp_path):
    """Small, but whole: a process, a database of its own, experts over HTTP, export, training, figures."""
    copy_tests_database(LoopFolder(tmp_path).var_dir(0))
    asked = {"output": tmp_path, "seeds": 1, "rounds": 1, "images": 24, "fresh": 30, "unrated": 30, "epochs": 2}
    call_command("closed_loop", **asked, arms=["none", "repaired"])
    files = sorted(tmp_path.glob("seed-000/results/*.json"))
    assert [file.stem for file in files] == [
        f"round-{number}-{arm}" for number in (0, 1) for arm in ("none", "repaired")
    ]
    last = json.loads(files[-1].read_text())
    assert last["ratings"]["training"] == 14 * 3 and last["ratings"]["calibration"] == 10 * 3
    assert last["judges"]["selector_file"] and 0 < last["served"]["yield"] < 1
    with closing(sqlite3.connect(tmp_path / "seed-000" / "var" / DATABASE)) as connection:
        assert connection.execute("select count(*) from ratings_rating").fetchone()[0] >= 24 * 3
    assert not Rating.objects.exists(), "nothing of it is in the user's database"
    written = [file.stat().st_mtime_ns for file in files]
    call_command("closed_loop", **asked, arms=["none", "repaired"])
    assert [file.stat().st_mtime_ns for file in files] == written


@pytest.mark.slow
def test_the_same_command_has_the_same_results(db, tmp_path):
    """In databases of their own, which draw other keys for everything that the loop does not name."""
    asked = {"seeds": 1, "rounds": 1, "images": 24, "fresh": 30, "unrated": 30, "epochs": 2, "arms": ["repaired"]}
    for name in ("one", "another"):
        folder = LoopFolder(tmp_path / name)
        copy_tests_database(folder.var_dir(0))
        call_command("closed_loop", **asked, output=folder.path)
    for file in ("exports/round-1-repaired/ratings.csv", "results/round-1-repaired.json"):
        one, another = (tmp_path / name / "seed-000" / file for name in ("one", "another"))
        assert one.read_bytes() == another.read_bytes(), file
