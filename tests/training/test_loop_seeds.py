"""Seeds of a simulated loop's images: none is used twice by any rounds, generators, uses or repetitions."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from django.core.management import CommandError, call_command

from training.closed_loop import rounds, sources
from training.closed_loop.rounds import Rounds
from training.closed_loop.sources import PipelineSource
from training.rlhf.generator_update import data as update_data
from training.rlhf.generator_update.settings import UpdateSettings
from training.simulation.loop import seeds
from training.simulation.loop.arms import Judges
from training.simulation.loop.images import LoopImages
from training.simulation.loop.seeds import check_repetitions, first_seed, update_seed
from training.simulation.loop.settings import EMBEDDED, LoopError, LoopFolder, LoopSettings

MOST_ROUNDS = 10


def loop(rounds: int, *, updates: bool = True, **sizes: int) -> LoopSettings:
    return LoopSettings(rounds=rounds, generator=EMBEDDED, update_generator=updates, **sizes)


def uses(settings: LoopSettings, num_repetitions: int) -> list[tuple[int, int]]:
    """First seed, and the one after the last, of all that a loop may draw."""
    generators = range(settings.rounds if settings.update_generator else 1)
    lengths = {seeds.FRESH: settings.fresh, seeds.UNRATED: settings.unrated}
    for number in range(1, settings.rounds + 1):
        lengths |= {seeds.random_stream(number): settings.images}
        lengths |= {seeds.candidate_stream(number): seeds.MOST_CANDIDATES}
    return [
        (first, first + length)
        for repetition in range(num_repetitions)
        for generator in generators
        for stream, length in lengths.items()
        for first in [first_seed(settings, repetition, updated_after=generator, stream=stream)]
    ]


@pytest.mark.parametrize("sizes", [{}, {"fresh": 60_000, "images": 130_000, "unrated": 200}])
@pytest.mark.parametrize("updates", [False, True])
@pytest.mark.parametrize("number", [*range(1, MOST_ROUNDS + 1), 18, 19, 30])
def test_no_seed_has_two_uses(number, updates, sizes):
    settings = loop(number, updates=updates, **sizes)
    num_repetitions = 0
    while num_repetitions < 5 and is_possible(settings, num_repetitions + 1):
        num_repetitions += 1
    assert num_repetitions == 5 or number > MOST_ROUNDS or sizes
    drawn = sorted(uses(settings, num_repetitions))
    assert all(end <= begin for (_, end), (begin, _) in zip(drawn, drawn[1:], strict=False))
    end = update_data._FIRST_IMAGE_SEED if updates else 2**31
    assert all(first >= 200_000_000 and last <= end for first, last in drawn), "updates draw from other seeds"


def is_possible(settings: LoopSettings, num_repetitions: int) -> bool:
    try:
        check_repetitions(settings, num_repetitions)
    except LoopError:
        return False
    return True


@pytest.mark.parametrize(("number", "updates"), [(1, True), (2, True), (3, True), (3, False), (18, False)])
def test_loops_that_reports_were_made_of_keep_their_seeds(number, updates):
    settings = loop(number, updates=updates)
    for repetition in (0, 1, 4):
        for after in range(number if updates else 1):
            for stream in range(2 * number + 4):
                expected = 200_000_000 + 2_000_000 * repetition + 500_000 * after + 50_000 * stream
                assert first_seed(settings, repetition, updated_after=after, stream=stream) == expected


def test_more_repetitions_than_there_are_seeds_for_are_refused(tmp_path):
    check_repetitions(LoopSettings(rounds=500), 10_000)  # phantoms: any number is a seed
    check_repetitions(loop(3), 400)
    with pytest.raises(LoopError, match="3 rounds with updates can be repeated 400 times, not 401"):
        check_repetitions(loop(3), 401)
    asked = {"rounds": 50, "seeds": 5, "generator": EMBEDDED, "update_generator": True}
    with pytest.raises(CommandError, match="can be repeated 3 times, not 5"):
        call_command("closed_loop", output=tmp_path / "loop", **asked)
    assert not (tmp_path / "loop").exists()


@pytest.mark.parametrize("number", [2, 3, 4, 5, 10, 30, 50])
def test_updates_have_seeds_enough(number):
    settings = loop(number)
    num_repetitions = 1
    while is_possible(settings, num_repetitions + 1):
        num_repetitions += 1
    found = [update_seed(settings, each, after=k) for each in range(num_repetitions) for k in range(1, number)]
    assert found == list(range(len(found)))  # each once; the first repetition's are those of earlier reports
    files = dict.fromkeys(("generator", "selector_file", "policy_file"), "anything")
    UpdateSettings.from_dict({**files, "seed": found[-1]})


# --- what a walk draws ---


class Rated:
    """A room whose experts have rated everything already."""

    def __init__(self, *_):
        self.study = None

    def exported(self, _):
        return self


@pytest.fixture
def updates() -> list[SimpleNamespace]:
    """Those that were asked for: what was asked."""
    return []


@pytest.fixture
def drawn(monkeypatch, tmp_path, updates) -> dict[int, set[tuple]]:
    """By seed, the generator and stream that images were drawn for. Networks, ratings and updates are left out."""
    found: dict[int, set[tuple]] = {}

    def judged(source: PipelineSource, images: list[int], stream: int, begin: int) -> LoopImages:
        for seed in images:
            found.setdefault(seed, set()).add((source.folder, stream))
        names = tuple(f"{source.folder}-{stream}-{begin + k}" for k in range(len(images)))
        nothing = np.zeros((len(images), 1, 1, 3), np.uint8)
        return LoopImages(names, nothing, ("OCT: drusen",) * len(images), np.linspace(-1, 0, len(images)))

    def rows(_, images: LoopImages) -> list[SimpleNamespace]:
        return [SimpleNamespace(pk=name, sha256=name, prompt=SimpleNamespace(text="")) for name in images.names]

    def finished(name: str, start: Callable[[], SimpleNamespace]) -> SimpleNamespace:
        update = start()
        updates.append(update)
        update.path = tmp_path / name
        return update

    monkeypatch.setattr(sources.Judge, "load", lambda: None)
    monkeypatch.setattr(PipelineSource, "_drawn", lambda _, seed, count: list(range(seed, seed + count)))
    monkeypatch.setattr(PipelineSource, "_judged", judged)
    monkeypatch.setattr(PipelineSource, "rows", rows)
    monkeypatch.setattr(rounds, "Room", Rated)
    monkeypatch.setattr(rounds, "scores", lambda arm, judges, images: np.arange(len(images)) % 2)
    accepted = {"figures": {"accepted": True}}
    monkeypatch.setattr(rounds, "active_release", lambda: None)
    monkeypatch.setattr(
        rounds.services, "start_generator_update", lambda **given: SimpleNamespace(**given, **accepted)
    )
    monkeypatch.setattr(rounds, "_finished", finished)
    monkeypatch.setattr(Rounds, "_learn", lambda self, *_: {arm: Judges() for arm in self._settings.read_arms})
    monkeypatch.setattr(Rounds, "_measure_all", lambda *_: None)
    return found


@pytest.mark.parametrize("number", range(1, MOST_ROUNDS + 1))
def test_a_loop_that_updates_its_generator_draws_every_image_from_a_seed_of_its_own(number, drawn, tmp_path):
    settings = loop(number, images=20, fresh=30, unrated=30, arms=("repaired", "ours"))
    for repetition in range(2):
        before = set(drawn)
        Rounds(LoopFolder(tmp_path), settings, repetition).run()
        assert len(set(drawn) - before) == len(before) or not repetition, "repetitions share no seed"
    assert all(len(used_for) == 1 for used_for in drawn.values())
    generators = {folder for used_for in drawn.values() for folder, _ in used_for}
    assert len(generators) == number, "the first one, and one for every update"


def test_no_two_updates_of_a_loop_draw_from_the_same_seeds(drawn, updates, tmp_path):
    for repetition in range(3):
        Rounds(LoopFolder(tmp_path), loop(4, images=20, fresh=30, unrated=30, arms=("ours",)), repetition).run()
    assert [update.seed for update in updates] == list(range(9)), "three updates in each repetition"
    given = {"num_synthetic": 300, "sample_size": 300}
    real = update_data.RealData((), torch.empty(0), (), ("OCT: drusen", "Fundus: drusen"), "")
    firsts = sorted(
        real.wanted(SimpleNamespace(seed=update.seed, **given), for_decision=decides).seed
        for update in updates
        for decides in (False, True)
    )
    assert len(firsts) == 18 and all(after - before >= 300 for before, after in pairwise(firsts))
