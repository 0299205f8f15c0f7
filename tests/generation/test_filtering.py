"""The filter serves what passes and nothing else. Its rule is checked against plain loops over known scores."""

import random

import pytest

from generation.filtering import FilterRule, Ledger, Verdict, fill_places


def scores_of(seed: int) -> tuple[float, float]:
    """What selector and policy think of the image of a seed: fixed, and unlike its neighbours'."""
    draw = random.Random(seed)
    return draw.random(), draw.random()


class Call:
    """A call whose images are their own seeds, and what the filter asked of it."""

    def __init__(self, *, threshold=0.6, max_attempts=10, num_candidates=3, places=4, seed=0, scores=scores_of):
        self.rule = FilterRule(threshold, max_attempts, num_candidates)
        self.ledger = Ledger(self.rule, seed, places)
        self.scores = scores
        self.batches: list[list[int]] = []

    def propose(self, candidates):
        self.batches.append([candidate.seed for candidate in candidates])
        return [candidate.seed for candidate in candidates]

    def score(self, candidates, images):
        pairs = [self.scores(seed) for seed in images]
        return [selector for selector, _ in pairs], [policy for _, policy in pairs]

    def run(self, *, batch_size=4, stop_after=None) -> list:
        judged = []
        batches = fill_places(self.ledger, batch_size=batch_size, propose=self.propose, score=self.score)
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
    drawn = sorted(seed for batch in call.batches for seed in batch)
    assert drawn == sorted(verdict.number for verdict in recorded), "nothing was drawn and forgotten"


def test_stage_one_is_the_first_attempt_and_stage_two_the_rest():
    call = Call(threshold=1.0, places=1, max_attempts=3, num_candidates=2)
    stages = [(one.candidate.attempt, one.candidate.stage) for one in call.run()]
    assert stages == [(1, 1), (1, 1), (2, 2), (2, 2), (3, 2), (3, 2)]


def test_a_filled_place_draws_no_more():
    call = Call(threshold=0.0, places=3)
    call.run(batch_size=2)
    assert call.batches == [[0, 30], [60]]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_what_is_served_does_not_depend_on_the_batch_size(batch_size):
    one_by_one, batched = Call(places=7), Call(places=7)
    one_by_one.run(batch_size=1)
    batched.run(batch_size=batch_size)
    assert batched.served_seeds == one_by_one.served_seeds
    assert max(len(batch) for batch in batched.batches) <= batch_size


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5, 8])
def test_an_interrupted_call_goes_on_as_if_it_had_never_stopped(stop_after):
    whole = Call(threshold=0.8, places=5)
    whole_judged = whole.run(batch_size=2)
    first = Call(threshold=0.8, places=5)
    stored = first.run(batch_size=2, stop_after=stop_after)
    second = Call(threshold=0.8, places=5)
    for one in stored:
        second.ledger.record(one.verdict)
    rest = second.run(batch_size=2)
    assert stored + rest == whole_judged
    assert first.batches + second.batches == whole.batches, "each image is denoised in the same company"
    assert second.served_seeds == whole.served_seeds


@pytest.mark.parametrize("bad", [float("nan"), -0.01, 1.01, float("inf")])
def test_a_score_that_is_no_score_is_an_error(bad):
    call = Call(scores=lambda seed: (0.9, bad))
    with pytest.raises(ValueError, match="policy gave .* seed 0; scores lie in 0..1"):
        call.run()


def test_a_scorer_that_loses_an_image_is_an_error():
    call = Call()
    call.score = lambda candidates, images: ([0.9], [0.9])
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
