"""The filter serves what passes and nothing else. Its rule is checked against plain loops over known scores."""

import json
import random

import pytest

from generation.filtering import Ended, FilterRule, Judge, Ledger, Spent, Verdict, fill_places


def scores_of(seed: int) -> tuple[float, float]:
    """What selector and policy think of the image of a seed: fixed, and unlike its neighbours'."""
    draw = random.Random(seed)
    return draw.random(), draw.random()


class Steps:
    """Draws candidates side by side, each in ``steps`` steps of one row; the image of a seed is the seed itself.

    ``stops(seed)`` says after how many steps a gate stops that one, None: never.
    """

    def __init__(self, rows, *, steps=3, stops=lambda seed: None):
        self.rows, self.steps, self.stops = rows, steps, stops
        self.under_way: dict[int, list] = {}  # number: [candidate, steps done]
        self.begun: list = []  # candidates in the order they began
        self.rows_used: list[int] = []  # of each step

    def has_room(self):
        return len(self.under_way) < self.rows

    def begin(self, candidate):
        assert self.has_room(), "more candidates than rows"
        self.begun.append(candidate)
        self.under_way[candidate.number] = [candidate, 0]

    def give_up(self, number):
        return self.under_way.pop(number)[1]

    def step(self):
        self.rows_used.append(len(self.under_way))
        ended = []
        for number, one in list(self.under_way.items()):
            one[1] += 1
            candidate, done = one
            if done == self.stops(candidate.seed):
                ended.append(Ended(number, None, done))
            elif done == self.steps:
                ended.append(Ended(number, candidate.seed, done))
            else:
                continue
            del self.under_way[number]
        random.Random(len(self.rows_used)).shuffle(ended)  # in whichever order they are reported
        return ended


class Call:
    """A call whose images are their own seeds, and what the filter asked of it."""

    def __init__(self, *, threshold=0.6, max_attempts=10, num_candidates=3, places=4, seed=0, scores=scores_of):
        self.rule = FilterRule(threshold, max_attempts, num_candidates)
        self.ledger = Ledger(self.rule, seed, places)
        self.scores = scores
        self.drawing: Steps | None = None

    def run(self, *, batch_size=4, stop_after=None, **steps) -> list:
        judged = []
        self.drawing = Steps(batch_size, **steps)
        batches = fill_places(self.ledger, self.drawing, Judge(lambda candidate, image: self.scores(image)))
        for number, batch in enumerate(batches, start=1):
            judged += batch
            if number == stop_after:
                break
        return judged

    @property
    def served_seeds(self) -> dict[int, int | None]:
        found = {place: self.ledger.filled_by(place) for place in range(self.ledger.num_places)}
        return {place: verdict and self.ledger.seed + verdict.number for place, verdict in found.items()}


def first_that_passes(call: Call, place: int) -> int | None:
    """The independent formula: walk the place's seeds in order and stop at the first good one."""
    per_place = call.rule.max_attempts * call.rule.num_candidates
    for turn in range(per_place):
        seed = call.ledger.seed + place * per_place + turn
        if min(scores_of(seed)) >= call.rule.quality_threshold:
            return seed
    return None


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("seed", [0, 7, 12345])
def test_each_place_is_filled_by_the_first_candidate_that_passes(threshold, seed):
    call = Call(threshold=threshold, seed=seed, places=6)
    call.run()
    assert call.served_seeds == {place: first_that_passes(call, place) for place in range(6)}


@pytest.mark.parametrize("case", range(30))
def test_nothing_under_the_threshold_is_ever_served(case):
    draw = random.Random(case)
    call = Call(
        threshold=draw.random(),
        max_attempts=draw.randint(1, 5),
        num_candidates=draw.randint(1, 4),
        places=draw.randint(1, 9),
        seed=draw.randrange(2**32),
    )
    judged = call.run(batch_size=draw.randint(1, 12))
    for one in judged:
        selector, policy = scores_of(one.candidate.seed)
        passes = selector >= call.rule.quality_threshold and policy >= call.rule.quality_threshold
        assert one.verdict.accepted == passes
    for place, seed in call.served_seeds.items():
        assert seed is None or min(scores_of(seed)) >= call.rule.quality_threshold, place
    # One image for each place at most, and each place filled or out of attempts.
    assert sum(one.verdict.accepted for one in judged) == len(call.ledger.filled_places)
    assert set(call.ledger.filled_places) | set(call.ledger.empty_places) == set(range(call.ledger.num_places))


@pytest.mark.parametrize("failing", ["selector", "policy"])
def test_both_selector_and_policy_must_accept(failing):
    """The predecessor asked only one of them."""
    scores = (0.2, 0.95) if failing == "selector" else (0.95, 0.2)
    call = Call(scores=lambda seed: scores, places=2)
    judged = call.run()
    assert not any(one.verdict.accepted for one in judged)
    assert call.ledger.filled_places == []


def test_a_score_on_the_threshold_passes():
    call = Call(threshold=0.6, scores=lambda seed: (0.6, 0.6), places=1)
    call.run()
    assert call.ledger.filled_places == [0]


def test_a_failed_filter_serves_nothing_and_says_so():
    """The predecessor served the last image when none had passed."""
    call = Call(scores=lambda seed: (0.5, 0.59), places=2, max_attempts=3, num_candidates=2)
    judged = call.run()
    assert len(judged) == 2 * 3 * 2, "every attempt was made and recorded"
    assert call.ledger.filled_places == []
    assert call.ledger.empty_places == [0, 1]
    text = call.ledger.explain_empty()
    assert "2 of 2 images" in text
    assert "3 attempts of 2 (12 candidates; best selector score 0.50, best policy score 0.59" in text


def test_no_two_candidates_of_a_call_share_a_seed():
    """The predecessor drew every image of a call from one seed."""
    call = Call(threshold=0.95, places=5, seed=100)
    seeds = [one.candidate.seed for one in call.run(batch_size=3)]
    assert len(set(seeds)) == len(seeds)
    assert all(one.candidate.seed == 100 + one.candidate.number for one in Call(threshold=0.95, seed=100).run())


def test_every_attempt_is_recorded_with_seed_scores_and_verdict():
    call = Call(threshold=0.7, places=3)
    judged = call.run()
    recorded = [verdict for place in range(3) for verdict in call.ledger.drawn_for(place)]
    assert sorted(one.verdict.number for one in judged) == sorted(verdict.number for verdict in recorded)
    for verdict in recorded:
        assert (verdict.selector_score, verdict.policy_score) == scores_of(verdict.number)
    spent = call.ledger.spent
    assert spent.candidates == len(call.drawing.begun) == len(judged) + spent.dropped, "nothing is forgotten"


def test_stage_one_is_the_first_attempt_and_stage_two_the_rest():
    call = Call(threshold=1.0, places=1, max_attempts=3, num_candidates=2)
    stages = [(one.candidate.attempt, one.candidate.stage) for one in call.run(batch_size=1)]
    assert stages == [(1, 1), (1, 1), (2, 2), (2, 2), (3, 2), (3, 2)]


def test_a_filled_place_draws_no_more():
    call = Call(threshold=0.0, places=3)
    call.run(batch_size=2)
    assert [candidate.number for candidate in call.drawing.begun] == [0, 30, 60, 61]
    assert call.ledger.spent == Spent(unet_evaluations=4 * 3, candidates=4, dropped=1, accepted=3)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_what_is_served_does_not_depend_on_the_batch_size(batch_size):
    one_by_one, batched = Call(places=7), Call(places=7)
    judged = one_by_one.run(batch_size=1)
    also = batched.run(batch_size=batch_size)
    assert batched.served_seeds == one_by_one.served_seeds
    assert sorted(one.verdict.number for one in also) == sorted(one.verdict.number for one in judged)
    assert max(batched.drawing.rows_used) <= batch_size


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("stops", [lambda seed: None, lambda seed: 1 if seed % 3 == 1 else None])
def test_an_interrupted_call_goes_on_as_if_it_had_never_stopped(stop_after, stops):
    whole, first, second = (Call(threshold=0.8, places=5) for _ in range(3))
    whole_judged = whole.run(batch_size=2, stops=stops)
    stored = first.run(batch_size=2, stop_after=stop_after, stops=stops)
    for one in stored:
        second.ledger.record(one.verdict)
    second.ledger.restore_spent(json.loads(json.dumps(first.ledger.as_record())))
    rest = second.run(batch_size=2, stops=stops)
    by_number = {one.verdict.number: one.verdict for one in whole_judged}
    assert {one.verdict.number: one.verdict for one in (*stored, *rest)} == by_number
    assert len(stored) + len(rest) == len(whole_judged), "no candidate is judged twice"
    assert second.served_seeds == whole.served_seeds
    assert second.ledger.spent.stopped == whole.ledger.spent.stopped


# --- side by side ---


def test_the_batch_is_full_as_long_as_there_is_something_to_draw():
    call = Call(threshold=0.9, places=6, max_attempts=4)
    call.run(batch_size=5, stops=lambda seed: 1 + seed % 3)
    left = [index for index, rows in enumerate(call.drawing.rows_used) if rows < 5]
    assert not left or left[0] >= len(call.drawing.rows_used) - 3 * 3, "gaps are at the end only"


def test_a_place_has_no_more_candidates_under_way_than_one_attempt_draws():
    call = Call(scores=lambda seed: (0.0, 0.0), places=1, num_candidates=3)
    call.run(batch_size=8)
    assert max(call.drawing.rows_used) == 3
    assert len(call.drawing.begun) == 30


def test_every_place_gets_its_first_candidate_before_any_gets_a_second():
    call = Call(scores=lambda seed: (0.0, 0.0), places=6, max_attempts=2, num_candidates=2)
    call.run(batch_size=4)
    assert [candidate.place for candidate in call.drawing.begun[:6]] == list(range(6))
    for start in range(0, 24, 6):  # nobody is a whole candidate ahead of the others, however long the call
        counts = [sum(one.place == place for one in call.drawing.begun[: start + 6]) for place in range(6)]
        assert max(counts) - min(counts) <= 1


def test_a_hopeless_place_does_not_spend_what_belongs_to_the_others():
    call = Call(scores=lambda seed: (0.0, 0.0) if seed < 30 else scores_of(seed), places=4)
    call.run(batch_size=8)
    alone = Call(places=4)
    alone.run(batch_size=1)
    assert call.ledger.empty_places == [0]
    for place in (1, 2, 3):
        assert call.ledger.drawn_for(place) == alone.ledger.drawn_for(place)
    assert call.ledger.spent_on(0).candidates == 30, "its own budget to the last"


def test_a_younger_candidate_never_overtakes_an_older_one_of_its_place():
    """Candidate 1 is stopped long before candidate 0 ends; 0 passes, so 1 was never settled."""
    call = Call(threshold=0.5, scores=lambda seed: (0.9, 0.9), places=1)
    judged = call.run(batch_size=2, steps=6, stops=lambda seed: 1 if seed == 1 else None)
    assert [one.verdict.number for one in judged] == [0]
    assert call.ledger.spent.stopped == 0 and call.ledger.settled(0) == 1
    assert call.ledger.spent.unet_evaluations == sum(call.drawing.rows_used)


# --- stopped by a gate ---


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_stopped_candidate_counts_as_one_that_failed(batch_size):
    def stops(seed):
        return 2 if seed % 2 else None

    call = Call(places=5)
    judged = call.run(batch_size=batch_size, stops=stops)
    for place in range(5):
        seeds = range(place * 30, place * 30 + 30)
        first = next((seed for seed in seeds if not seed % 2 and min(scores_of(seed)) >= 0.6), None)
        assert call.served_seeds[place] == first
        tried = [seed for seed in seeds if first is None or seed < first]
        assert call.ledger.spent_on(place).stopped == sum(seed % 2 for seed in tried)
    assert not any(one.candidate.seed % 2 for one in judged)
    assert call.ledger.spent.unet_evaluations == sum(call.drawing.rows_used), "stopped and dropped ones count"


def test_a_place_whose_candidates_are_all_stopped_says_so():
    call = Call(places=2, max_attempts=2, num_candidates=2)
    batches = list(
        fill_places(call.ledger, Steps(4, stops=lambda seed: 1), Judge(lambda candidate, image: (1.0, 1.0)))
    )
    assert batches and not any(batches), "each settled step is told, without images"
    assert call.ledger.empty_places == [0, 1]
    assert "(8 candidates, 8 of them stopped early; both must reach 0.6)" in call.ledger.explain_empty()
    assert call.ledger.spent == Spent(8, 8, stopped=8)


def test_the_account_is_kept_for_each_place_and_for_the_call():
    call = Call(places=3, threshold=0.8)
    call.run(batch_size=4, stops=lambda seed: 1 if seed % 4 == 0 else None)
    record = json.loads(json.dumps(call.ledger.as_record()))
    assert set(record) == {"unet_evaluations", "candidates", "stopped", "dropped", "accepted", "places"}
    assert record["unet_evaluations"] == sum(call.drawing.rows_used)
    assert record["candidates"] == len(call.drawing.begun)
    assert [sum(values[index] for values in record["places"].values()) for index in range(5)] == [
        record[name] for name in ("unet_evaluations", "candidates", "stopped", "dropped", "accepted")
    ]


@pytest.mark.parametrize("bad", [float("nan"), -0.01, 1.01, float("inf")])
def test_a_score_that_is_no_score_is_an_error(bad):
    call = Call(scores=lambda seed: (0.9, bad))
    with pytest.raises(ValueError, match="policy gave .* seed 0; scores lie in 0..1"):
        call.run()


def test_a_scorer_that_gives_one_score_is_an_error():
    call = Call(scores=lambda seed: (0.9,))
    with pytest.raises(ValueError, match="zip"):
        call.run()


def test_a_verdict_of_another_call_is_refused():
    ledger = Ledger(FilterRule(0.6, 2, 2), seed=0, num_places=2)
    with pytest.raises(ValueError, match="belongs to no place"):
        ledger.record(Verdict(8, 0.9, 0.9, True))
    ledger.record(Verdict(3, 0.9, 0.9, True))
    with pytest.raises(ValueError, match="twice"):
        ledger.record(Verdict(3, 0.9, 0.9, True))


@pytest.mark.parametrize(
    ("key", "values"),
    [("quality_threshold", (1.2, 1, 1)), ("max_attempts", (0.5, 0, 1)), ("num_candidates", (0, 1, 0))],
)
def test_a_rule_out_of_range_is_refused_by_name(key, values):
    with pytest.raises(ValueError, match=key):
        FilterRule(*values)
