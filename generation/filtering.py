"""RLHF generation: propose, score, keep. Pure: knows no model, no torch, no Django.

A call fills *places*: one place for each image asked for. A place makes at most ``max_attempts`` attempts, an
attempt draws at most ``num_candidates`` candidates, and the first candidate that passes fills the place.

    stage 1   attempt 1 of every place: candidates are generated and classified by selector and policy
    stage 2   attempts 2 .. max_attempts, for the places that stage 1 left empty: generated and classified again

A candidate passes when selector score >= quality_threshold AND policy score >= quality_threshold. Only a candidate
that passes fills a place; a place that none fills stays empty: there is no fallback image (METHOD.md 4.7).

Candidates of one place are drawn one after the other, those of all open places side by side in batches, so no
image is generated for a place that is filled already (METHOD.md 5: serve the first that passes).

Numbering: the candidates of place p are k = p M, p M + 1, ... with M = max_attempts x num_candidates, and candidate
k uses seed + k. No two candidates of a call share a seed, and which image fills a place depends on nothing but
seed and place: not on the batch size, on the other places, or on an interruption.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Image = TypeVar("Image")


@dataclass(frozen=True)
class FilterRule:
    """When a candidate passes, and how many a place may draw."""

    quality_threshold: float  # both scores must reach it, 0..1
    max_attempts: int  # attempts per place
    num_candidates: int  # candidates per attempt

    def __post_init__(self):
        if not 0 <= self.quality_threshold <= 1:
            raise ValueError(f"quality_threshold is {self.quality_threshold}; it must lie in 0..1.")
        for name in ("max_attempts", "num_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    @property
    def candidates_per_place(self) -> int:
        return self.max_attempts * self.num_candidates

    def passes(self, selector_score: float, policy_score: float) -> bool:
        return selector_score >= self.quality_threshold and policy_score >= self.quality_threshold

    def candidate(self, number: int, seed: int) -> "Candidate":
        """Candidate ``number`` of a call that began with ``seed``."""
        place, turn = divmod(number, self.candidates_per_place)
        return Candidate(number, place, attempt=turn // self.num_candidates + 1, seed=seed + number)


@dataclass(frozen=True)
class Candidate:
    number: int  # k, unique in the call
    place: int  # which of the images asked for it is drawn for, from 0
    attempt: int  # which attempt of that place, from 1
    seed: int  # the call's seed + number

    @property
    def stage(self) -> int:
        return 1 if self.attempt == 1 else 2


@dataclass(frozen=True)
class Verdict:
    """What selector and policy said of one candidate."""

    number: int  # the candidate's
    selector_score: float  # serving score, 0..1
    policy_score: float  # alignment score, 0..1
    accepted: bool


@dataclass(frozen=True)
class Judged(Generic[Image]):
    """A candidate with its image and its verdict."""

    candidate: Candidate
    image: Image
    verdict: Verdict


@dataclass
class Ledger:
    """Every verdict of a call so far, and what follows from them."""

    rule: FilterRule
    seed: int
    num_places: int
    _drawn: dict[int, dict[int, Verdict]] = field(default_factory=dict)  # place -> candidate number -> verdict

    def record(self, verdict: Verdict) -> None:
        """Note a verdict; raises ValueError where it belongs to no place or its candidate was judged before."""
        place = verdict.number // self.rule.candidates_per_place
        if not 0 <= place < self.num_places:
            raise ValueError(f"Candidate {verdict.number} belongs to no place: its call had other parameters.")
        drawn = self._drawn.setdefault(place, {})
        if verdict.number in drawn:
            raise ValueError(f"Candidate {verdict.number} was judged twice.")
        drawn[verdict.number] = verdict

    def drawn_for(self, place: int) -> list[Verdict]:
        """The verdicts of a place in the order of its candidates."""
        return [verdict for _, verdict in sorted(self._drawn.get(place, {}).items())]

    def filled_by(self, place: int) -> Verdict | None:
        """The first candidate of the place that passed."""
        return next((verdict for verdict in self.drawn_for(place) if verdict.accepted), None)

    def next_candidate(self, place: int) -> Candidate | None:
        """What the place draws next; None once it is filled or its attempts are spent."""
        drawn = self.drawn_for(place)
        if any(verdict.accepted for verdict in drawn) or len(drawn) == self.rule.candidates_per_place:
            return None
        return self.rule.candidate(place * self.rule.candidates_per_place + len(drawn), self.seed)

    @property
    def open_places(self) -> list[int]:
        return [place for place in range(self.num_places) if self.next_candidate(place) is not None]

    @property
    def filled_places(self) -> list[int]:
        return [place for place in range(self.num_places) if self.filled_by(place) is not None]

    @property
    def empty_places(self) -> list[int]:
        """Places whose attempts are spent without a candidate that passed."""
        settled = set(self.open_places) | set(self.filled_places)
        return [place for place in range(self.num_places) if place not in settled]

    def explain_empty(self) -> str:
        """A sentence for people about the places left empty: what was tried, how near it came, what helps."""
        verdicts = [verdict for place in self.empty_places for verdict in self.drawn_for(place)]
        best_selector = max(verdict.selector_score for verdict in verdicts)
        best_policy = max(verdict.policy_score for verdict in verdicts)
        rule = self.rule
        return (
            f"{len(self.empty_places)} of {self.num_places} images found no candidate that passes: each made "
            f"{rule.max_attempts} attempts of {rule.num_candidates} ({len(verdicts)} candidates; best selector score "
            f"{best_selector:.2f}, best policy score {best_policy:.2f}; both must reach {rule.quality_threshold:g}). "
            "Try another seed, more attempts or a lower threshold, or train the generator further."
        )


def _checked(name: str, score: float, candidate: Candidate) -> float:
    score = float(score)
    if not (math.isfinite(score) and 0 <= score <= 1):
        raise ValueError(f"The {name} gave {score} for the candidate with seed {candidate.seed}; scores lie in 0..1.")
    return score


def _judge(
    rule: FilterRule, candidates: Sequence[Candidate], images: Sequence[Image], scores: tuple[Sequence, Sequence]
) -> list[Judged[Image]]:
    selector_scores, policy_scores = scores
    judged = []
    for candidate, image, selector, policy in zip(candidates, images, selector_scores, policy_scores, strict=True):
        selector = _checked("selector", selector, candidate)
        policy = _checked("policy", policy, candidate)
        verdict = Verdict(candidate.number, selector, policy, rule.passes(selector, policy))
        judged.append(Judged(candidate, image, verdict))
    return judged


def fill_places(
    ledger: Ledger,
    *,
    batch_size: int,
    propose: Callable[[list[Candidate]], Sequence[Image]],
    score: Callable[[list[Candidate], Sequence[Image]], tuple[Sequence[float], Sequence[float]]],
) -> Iterator[list[Judged[Image]]]:
    """Draw, judge and yield batch after batch until every place is filled or spent; the ledger learns each verdict.

    ``propose(candidates)`` returns an image for each candidate, drawn from its ``seed`` for its ``place``.
    ``score(candidates, images)`` returns the selector's and the policy's scores, each in 0..1.
    Rounds go through the open places in order, one candidate a place, at most ``batch_size`` at a time. A ledger
    that holds verdicts already (an interrupted call) goes on where they end; batches are recorded whole, so its
    batches are those of the call that was never interrupted.
    """
    while places := _next_round(ledger):
        for start in range(0, len(places), batch_size):
            candidates = [ledger.next_candidate(place) for place in places[start : start + batch_size]]
            images = propose(candidates)
            judged = _judge(ledger.rule, candidates, images, score(candidates, images))
            for one in judged:
                ledger.record(one.verdict)
            yield judged


def _next_round(ledger: Ledger) -> list[int]:
    """The open places that have drawn fewest: a round that was cut short is finished before the next begins."""
    drawn = {place: len(ledger.drawn_for(place)) for place in ledger.open_places}
    fewest = min(drawn.values(), default=0)
    return [place for place, count in drawn.items() if count == fewest]
