"""RLHF generation: propose, score, keep. Pure: knows no model, no torch, no Django.

A call fills *places*: one place for each image asked for. A place makes at most ``max_attempts`` attempts, an
attempt draws at most ``num_candidates`` candidates, and the first candidate that passes fills the place.

    stage 1   attempt 1 of every place: candidates are generated and classified by selector and policy
    stage 2   attempts 2 .. max_attempts, for the places that stage 1 left empty: generated and classified again

A candidate passes when selector score >= quality_threshold AND policy score >= quality_threshold. Only a candidate
that passes fills a place; a place that none fills stays empty: there is no fallback image (METHOD.md 4.7). One that
copies a training image is *blocked*, whether it passes or not, and counts as one that failed. A gate may *stop* a
candidate while it is drawn; that one has no image and no scores, and counts as one that failed.

Numbering: the candidates of place p are k = p M, p M + 1, ... with M = max_attempts x num_candidates, and candidate
k uses seed + k. No two candidates of a call share a seed. A place settles its candidates in the order of their
numbers, whichever ends first, so which image fills it depends on nothing but seed and place: not on the batch size,
on the other places, or on an interruption. No place can spend another one's candidates.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

Image = TypeVar("Image")


@dataclass(frozen=True)
class FilterRule:
    """When a candidate passes, and how many a place may draw."""

    quality_threshold: float  # both scores must reach it, 0..1
    max_attempts: int  # attempts per place
    num_candidates: int  # candidates per attempt, and the most of a place that are drawn side by side

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
    blocked: bool = False  # it copies a training image


@dataclass(frozen=True)
class Ended(Generic[Image]):
    """A candidate that is drawn no further."""

    number: int  # the candidate's
    image: Image | None  # None: a gate stopped it
    unet_evaluations: int  # what drawing it took; a guided step counts twice


@dataclass(frozen=True)
class Judged(Generic[Image]):
    """A candidate with its image and its verdict."""

    candidate: Candidate
    image: Image
    verdict: Verdict
    unet_evaluations: int  # its own


@dataclass(frozen=True)
class Spent:
    """What was used up, by one place or by a whole call. candidates = judged + stopped + dropped."""

    unet_evaluations: int = 0  # of all candidates, whatever became of them; a guided step counts twice
    candidates: int = 0  # begun
    stopped: int = 0  # ended early by a gate
    dropped: int = 0  # given up half-way, because another one of the place had passed
    accepted: int = 0  # 0 or 1 for a place

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass
class Ledger:
    """Every verdict of a call so far, what it cost, and what follows from them."""

    rule: FilterRule
    seed: int
    num_places: int
    _drawn: dict[int, dict[int, Verdict]] = field(default_factory=dict)  # place -> candidate number -> verdict
    _spent: dict[int, Spent] = field(default_factory=dict)  # by place

    # --- what happened ---

    def record(self, verdict: Verdict) -> None:
        """Note a verdict; raises ValueError where it belongs to no place or its candidate was judged before."""
        place = verdict.number // self.rule.candidates_per_place
        if not 0 <= place < self.num_places:
            raise ValueError(f"Candidate {verdict.number} belongs to no place: its call had other parameters.")
        drawn = self._drawn.setdefault(place, {})
        if verdict.number in drawn:
            raise ValueError(f"Candidate {verdict.number} was judged twice.")
        drawn[verdict.number] = verdict

    def charge(self, place: int, spent: Spent) -> None:
        """Add to what a place has used up."""
        self._spent[place] = self.spent_on(place) + spent

    def restore_spent(self, spent: Mapping[str, Any]) -> None:
        """Take up the account of an interrupted call, as `as_record` wrote it."""
        self._spent = {int(place): Spent(*values) for place, values in spent.get("places", {}).items()}

    # --- what follows ---

    def spent_on(self, place: int) -> Spent:
        return self._spent.get(place, Spent())

    @property
    def spent(self) -> Spent:
        """Of all places."""
        return sum(self._spent.values(), Spent())

    def as_record(self) -> dict[str, Any]:
        """The account as JSON: the call's totals, and under "places" those of each place in the same order."""
        places = {str(place): list(asdict(spent).values()) for place, spent in sorted(self._spent.items())}
        return asdict(self.spent) | {"places": places}

    def settled(self, place: int) -> int:
        """How many candidates of the place are through: judged, or stopped by a gate."""
        return len(self._drawn.get(place, ())) + self.spent_on(place).stopped

    def drawn_for(self, place: int) -> list[Verdict]:
        """The verdicts of a place in the order of its candidates."""
        return [verdict for _, verdict in sorted(self._drawn.get(place, {}).items())]

    def filled_by(self, place: int) -> Verdict | None:
        """The first candidate of the place that passed."""
        return next((verdict for verdict in self.drawn_for(place) if verdict.accepted), None)

    def next_candidate(self, place: int) -> Candidate | None:
        """What the place settles next; None once it is filled or its attempts are spent."""
        settled = self.settled(place)
        if settled >= self.rule.candidates_per_place or self.filled_by(place) is not None:
            return None
        return self.rule.candidate(place * self.rule.candidates_per_place + settled, self.seed)

    @property
    def open_places(self) -> list[int]:
        return [place for place in range(self.num_places) if self.next_candidate(place) is not None]

    @property
    def filled_places(self) -> list[int]:
        return [place for place in range(self.num_places) if self.filled_by(place) is not None]

    @property
    def empty_places(self) -> list[int]:
        """Places whose attempts are spent without a candidate that passed."""
        return [p for p in range(self.num_places) if self.next_candidate(p) is None and self.filled_by(p) is None]

    def explain_empty(self) -> str:
        """A sentence for people about the places left empty: what was tried, how near it came, what helps."""
        empty, rule = self.empty_places, self.rule
        verdicts = [verdict for place in empty for verdict in self.drawn_for(place)]
        stopped = sum(self.spent_on(place).stopped for place in empty)
        blocked = sum(verdict.blocked for verdict in verdicts)
        tried = f"{len(verdicts) + stopped} candidates"
        if stopped:
            tried += f", {stopped} of them stopped early"
        if blocked:
            tried += f", {blocked} blocked as copies of training images"
        if verdicts:
            best_selector = max(verdict.selector_score for verdict in verdicts)
            best_policy = max(verdict.policy_score for verdict in verdicts)
            tried += f"; best selector score {best_selector:.2f}, best policy score {best_policy:.2f}"
        return (
            f"{len(empty)} of {self.num_places} images found no candidate that passes: each made "
            f"{rule.max_attempts} attempts of {rule.num_candidates} ({tried}; both must reach "
            f"{rule.quality_threshold:g}). "
            "Try another seed, more attempts or a lower threshold, or train the generator further."
        )


# --- the loop ---


class Drawing(Protocol[Image]):
    """Draws candidates side by side, step by step."""

    def has_room(self) -> bool:
        """Whether one more candidate would find a free row in the next step."""

    def begin(self, candidate: Candidate) -> None: ...

    def step(self) -> list[Ended[Image]]:
        """One step; those that ended with it."""

    def give_up(self, number: int) -> int:
        """Draw that candidate no further; the UNet evaluations it used."""


Scores = tuple[float, float]  # the selector's and the policy's, each 0..1


def _blocks_nothing(candidate: Candidate, image: Any) -> bool:
    return False


@dataclass(frozen=True)
class Judge(Generic[Image]):
    """Who decides about a candidate whose image is there."""

    score: Callable[[Candidate, Image], Scores]
    blocks: Callable[[Candidate, Image], bool] = _blocks_nothing  # is it a copy? Readers may see rejected ones

    def verdict(self, rule: FilterRule, candidate: Candidate, image: Image) -> Verdict:
        scores = self.score(candidate, image)
        selector, policy = (
            _checked(name, score, candidate) for name, score in zip(("selector", "policy"), scores, strict=True)
        )
        passes = rule.passes(selector, policy)
        blocked = self.blocks(candidate, image)
        return Verdict(candidate.number, selector, policy, accepted=passes and not blocked, blocked=blocked)


def fill_places(ledger: Ledger, drawing: Drawing[Image], judge: Judge[Image]) -> Iterator[list[Judged[Image]]]:
    """Draw and judge until every place is filled or spent; the ledger learns each verdict and what it cost.

    Yields after each step that settled a candidate those that were judged: an empty list where gates stopped them
    all. A ledger that holds verdicts already (an interrupted call) goes on where they end; what was half drawn then
    is drawn again.
    """
    queue = _Queue(ledger)
    while True:
        while drawing.has_room() and (candidate := queue.pop()):
            drawing.begin(candidate)
        if not queue.flying:
            return
        before = queue.settled
        judged = [one for place in queue.land(drawing.step()) for one in queue.settle(place, judge, drawing.give_up)]
        if queue.settled > before:
            yield judged


class _Queue(Generic[Image]):
    """Which candidate begins next, and in which order those of a place are settled.

    Fair: a place without a candidate under way comes before one that has some, then the one that began fewest.
    Candidates of one place are drawn side by side only in room that would else stay empty.
    """

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self.settled = 0  # candidates of this queue that are through
        self.flying: dict[int, Candidate] = {}  # by number: under way, or ended and waiting for an older sibling
        self._waiting: dict[int, Ended[Image]] = {}  # by number
        self._begun = {place: ledger.settled(place) for place in ledger.open_places}
        self._heap = [(0, begun, place) for place, begun in self._begun.items()]
        heapq.heapify(self._heap)

    def pop(self) -> Candidate | None:
        """The next candidate, now under way; None where no place may begin one."""
        rule = self.ledger.rule
        while self._heap:
            key = heapq.heappop(self._heap)
            place = key[-1]
            if place not in self._begun or key != self._key(place):
                continue  # out of date: the place was entered again since
            begun = self._begun[place]
            if begun >= rule.candidates_per_place or key[0] >= rule.num_candidates:
                continue  # entered again when one of its candidates ends
            candidate = rule.candidate(place * rule.candidates_per_place + begun, self.ledger.seed)
            self._begun[place] += 1
            self.flying[candidate.number] = candidate
            self._enter(place)
            return candidate
        return None

    def land(self, ended: Iterable[Ended[Image]]) -> list[int]:
        """Take up candidates that have ended; the places they belong to, in order."""
        ended = list(ended)
        self._waiting |= {one.number: one for one in ended}
        return sorted({self.flying[one.number].place for one in ended})

    def settle(self, place: int, judge: Judge[Image], give_up: Callable[[int], int]) -> Iterator[Judged[Image]]:
        """Settle the candidates of a place that have ended and have no older sibling under way."""
        while (due := self.ledger.next_candidate(place)) and due.number in self._waiting:
            one = self._waiting.pop(due.number)
            del self.flying[due.number]
            self.settled += 1
            cost = Spent(one.unet_evaluations, candidates=1)
            if one.image is None:
                self.ledger.charge(place, replace(cost, stopped=1))
                continue
            verdict = judge.verdict(self.ledger.rule, due, one.image)
            self.ledger.charge(place, replace(cost, accepted=int(verdict.accepted)))
            self.ledger.record(verdict)
            yield Judged(due, one.image, verdict, one.unet_evaluations)
        if due is None:
            self._close(place, give_up)
        else:
            self._enter(place)

    def _close(self, place: int, give_up: Callable[[int], int]) -> None:
        """The place is filled or spent: its other candidates are drawn no further, and what they used is counted."""
        del self._begun[place]
        for number in [number for number, one in self.flying.items() if one.place == place]:
            del self.flying[number]
            waiting = self._waiting.pop(number, None)
            used = waiting.unet_evaluations if waiting else give_up(number)
            self.ledger.charge(place, Spent(used, candidates=1, dropped=1))

    def _key(self, place: int) -> tuple[int, int, int]:
        begun = self._begun[place]
        return begun - self.ledger.settled(place), begun, place

    def _enter(self, place: int) -> None:
        heapq.heappush(self._heap, self._key(place))


def _checked(name: str, score: float, candidate: Candidate) -> float:
    score = float(score)
    if not (math.isfinite(score) and 0 <= score <= 1):
        raise ValueError(f"The {name} gave {score} for the candidate with seed {candidate.seed}; scores lie in 0..1.")
    return score
