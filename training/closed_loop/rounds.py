"""One seed of a simulated loop, round after round, on the application itself."""

import logging
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from generation.embedded_model import EMBEDDED_MODEL_DIR
from generation.memorisation import FILE_NAME, MemoryIndex
from generation.models import GeneratedImage
from generation.services import POLICY_NAME, SELECTOR_NAME, active_release
from medsyn.artifacts import file_sha256, write_json
from training import services
from training.closed_loop.reading import Room, count_rows, read_verdicts
from training.closed_loop.sources import PipelineSource, Source, source_of
from training.foreground import follow
from training.models import TrainingRun
from training.rlhf.config import RLHFConfig
from training.simulation.loop.arms import Judges, config_of, scores, train_on_shares, train_predecessors
from training.simulation.loop.figures import (
    Measured,
    Verdicts,
    equal_share_threshold,
    figures,
    no_verdicts,
    promise_of,
)
from training.simulation.loop.images import Encoded, LoopImages, joined
from training.simulation.loop.panel import Panel, Truth
from training.simulation.loop.seeds import (
    FRESH,
    MOST_CANDIDATES,
    UNRATED,
    candidate_stream,
    random_stream,
    update_seed,
)
from training.simulation.loop.settings import (
    ACCEPTED,
    EMBEDDED,
    NO_FILTER,
    NO_SOFT_LABELS,
    OF_OURS,
    ORACLE,
    OURS,
    PHANTOMS,
    PUBLISHED,
    READ_ARMS,
    REFUSED,
    LoopFolder,
    LoopSettings,
)

logger = logging.getLogger("training.closed_loop")
_CHUNK = 60  # candidates drawn at a time for a filter to choose from


class Rounds:
    """One seed, round after round. Arms draw from the same streams, so that they differ in what they learnt only."""

    def __init__(self, folder: LoopFolder, settings: LoopSettings, seed: int):
        self._folder, self._settings, self._seed = folder, settings, seed
        self._source = source_of(settings, seed=seed)
        self._measuring = self._measuring_images(self._source)
        self._own_source, self._own_measuring = self._source, self._measuring  # of ours: of its updated generator
        self._own_pipeline, self._own_since = self._pipeline, 1  # and the round that it draws from first
        self._update_before: str | None = None  # what came of the update before this round: ACCEPTED or REFUSED
        truth = Truth(joined([each.images for each in self._measuring]).quality)
        self._truth = truth
        self._panel = Panel.draw(settings.panel, truth, seed=seed)
        self._rooms = {arm: Room(arm, settings, self._panel) for arm in settings.read_arms}
        self._known: dict[int, tuple[str, float]] = {}  # by key of the image's row: name and gold quality
        self._names: dict[tuple[str, str], str] = {}  # by sha256 and prompt
        self._rated: dict[str, list] = {arm: [] for arm in settings.read_arms}  # images in a study, by round

    def _measuring_images(self, source: Source) -> list[Encoded]:
        pipeline = self._pipeline
        parts = ((FRESH, self._settings.fresh), (UNRATED, self._settings.unrated))
        return [Encoded(source.draw(stream, count), pipeline) for stream, count in parts]

    @property
    def _pipeline(self) -> Path:
        """Whose text encoder the policy reads."""
        is_named = self._settings.generator in (PHANTOMS, EMBEDDED)
        return EMBEDDED_MODEL_DIR if is_named else Path(self._settings.generator).resolve()

    @cached_property
    def _index(self) -> MemoryIndex | None:
        """Of the images that the generator was trained on, where one was made."""
        path = self._pipeline / FILE_NAME
        return MemoryIndex.load(path) if path.is_file() and self._settings.generator != PHANTOMS else None

    # --- the loop ---

    def run(self) -> None:
        judges = {arm: Judges() for arm in self._settings.arms}
        judges |= {arm: Judges() for arm in self._settings.read_arms}
        self._measure_all(0, judges, {})
        for number in range(1, self._settings.rounds + 1):
            started = time.monotonic()
            files = {arm: self._rate(arm, number, judges[arm]) for arm in self._settings.read_arms}
            rated = time.monotonic()
            judges = self._learn(number, files)
            learnt = time.monotonic()
            self._measure_all(number, judges, files)
            seconds = (rated - started, learnt - rated, time.monotonic() - learnt)
            logger.info("Round %d: rated in %.0f s, learnt in %.0f s, measured in %.0f s.", number, *seconds)
            if self._settings.update_generator and number < self._settings.rounds:
                self._update(number)

    def _draws_anew(self, arm: str) -> bool:
        """Whether the arm's images come from the generator that the release of ours may update."""
        return arm == OURS or arm in OF_OURS

    def _source_for(self, arm: str) -> Source:
        return self._own_source if self._draws_anew(arm) else self._source

    def _measuring_for(self, arm: str) -> list[Encoded]:
        return self._own_measuring if self._draws_anew(arm) else self._measuring

    # --- images and ratings ---

    def _rate(self, arm: str, number: int, judges: Judges) -> Path:
        """Have the arm's images of a round rated; the ratings CSV of all its rounds."""
        settings = self._settings
        num_served = settings.num_served if number > 1 else 0
        source = self._source_for(arm)
        random = source.draw(random_stream(number), settings.images - num_served)
        parts = [random]
        if num_served:
            parts.append(self._choose(arm, judges, candidate_stream(number), num_served))
        images = joined(parts)
        rows = source.rows(images)
        self._know(images, rows)
        self._rated[arm].append(images)
        room, folder = self._rooms[arm], self._folder.seed_folder(self._seed) / "exports" / f"round-{number}-{arm}"
        ratings_file = folder / "ratings.csv"
        if room.exported(ratings_file) is None:
            room.add(rows, rows[: len(random)])
            answered = room.rate_all(self._known)
            logger.info("Round %d, %s: %d ratings of %d images.", number, arm, answered, len(images))
            room.export(folder)
        return ratings_file

    def _choose(self, arm: str, judges: Judges, stream: int, number: int) -> LoopImages:
        """The first candidates of a stream that the arm's filter serves."""
        threshold = equal_share_threshold(
            scores(arm, judges, self._measuring_for(arm)[UNRATED]), self._settings.serve
        )
        chosen, found = [], 0
        for begin in range(0, MOST_CANDIDATES, _CHUNK):
            drawn = self._source_for(arm).draw(stream, _CHUNK, begin=begin)
            passes = np.flatnonzero(scores(arm, judges, Encoded(drawn, self._pipeline)) >= threshold)
            chosen.append(drawn.subset(passes[: number - found]))
            found += len(chosen[-1])
            if found == number:
                return joined(chosen)
        raise RuntimeError(f"The filter of {arm} served {found} of {MOST_CANDIDATES} candidates.")

    def _know(self, images: LoopImages, rows: list[GeneratedImage]) -> None:
        for name, quality, row in zip(images.names, images.quality.tolist(), rows, strict=True):
            self._known[row.pk] = name, quality
            self._names[row.sha256, row.prompt.text] = name

    # --- learning ---

    def _learn(self, number: int, files: dict[str, Path]) -> dict[str, Judges]:
        """What every arm judges with after the round."""
        config = config_of(self._settings, seed=self._seed)
        runs = self._folder.seed_folder(self._seed) / "runs"
        found = {}
        for arm in dict.fromkeys((*self._settings.read_arms, *self._settings.arms)):
            folder, study = runs / f"round-{number}-{arm}", self._settings.study_of(arm)
            if arm in (NO_FILTER, ORACLE):
                found[arm] = Judges()
            elif arm == OURS:
                found[arm] = self._release(number, config, files[OURS])
            elif arm == NO_SOFT_LABELS:
                found[arm] = train_on_shares(files[study], config, folder, generator=self._pipeline)
            elif arm in READ_ARMS:
                found[arm] = train_predecessors(files[study], config, folder, as_published=arm == PUBLISHED)
            else:
                found[arm] = found[OURS]
        return found

    def _release(self, number: int, config: RLHFConfig, ratings_file: Path) -> Judges:
        """Train on the export as the application does, publish and activate."""

        def start() -> TrainingRun:
            export = self._rooms[OURS].exported(ratings_file)
            return services.train_on_ratings(
                export=export, config=config, generator=str(self._own_pipeline), name=name
            )

        name = f"Closed loop, round {number}"
        run = _finished(name, start)
        release = run.release or services.release(run=run, activate=True)
        return Judges(release.folder / SELECTOR_NAME, release.folder / POLICY_NAME)

    def _update(self, number: int) -> None:
        """Update the generator of ours by its release; where that is accepted, it draws from now on."""

        def start() -> TrainingRun:
            images = self._settings.update_images
            return services.start_generator_update(
                release=active_release(),
                name=name,
                real_data=self._settings.real_data,
                seed=update_seed(self._settings, self._seed, after=number),
                num_synthetic=images,
                sample_size=images,
                max_steps=self._settings.update_steps,
            )

        name = f"Closed loop, update after round {number}"
        run = _finished(name, start)
        self._update_before = ACCEPTED if run.figures.get("accepted") else REFUSED
        logger.info("Round %d: the update was %s.", number, self._update_before)
        if self._update_before == ACCEPTED:
            self._own_pipeline, self._own_since = run.path / services.PIPELINE_NAME, number + 1
            self._own_source = PipelineSource(
                self._settings, self._seed, pipeline=self._own_pipeline, updated_after=number
            )
            self._own_measuring = self._measuring_images(self._own_source)

    # --- measuring ---

    def _measure_all(self, number: int, judges: dict[str, Judges], files: dict[str, Path]) -> None:
        verdicts: dict[str, tuple] = {}
        for arm in self._settings.arms:
            target = self._folder.result_file(self._seed, arm, number)
            if not target.exists():
                study = self._settings.study_of(arm)
                if study not in verdicts:
                    verdicts[study] = self._verdicts(study, files)
                target.parent.mkdir(parents=True, exist_ok=True)
                write_json(target, self._measured(arm, number, judges[arm], *verdicts[study]))

    def _verdicts(self, study: str, files: dict[str, Path]) -> tuple[Verdicts, Encoded | None, dict[str, int]]:
        """What the panel said of the calibration images, these, and what ratings were spent."""
        if not files:
            return no_verdicts(), None, {}
        # What an earlier generator drew says nothing of what this one serves.
        images = joined(self._rated[study][self._own_since - 1 if study == OURS else 0 :])
        verdicts = read_verdicts(files[study], self._names, among=set(images.names))
        place = {name: position for position, name in enumerate(images.names)}
        chosen = images.subset(np.array([place[name] for name in verdicts.images], dtype=int))
        return verdicts, Encoded(chosen, self._pipeline), count_rows(files[study])

    def _measured(
        self,
        arm: str,
        number: int,
        judges: Judges,
        verdicts: Verdicts,
        calibration: Encoded | None,
        spent: dict[str, int],
    ) -> dict:
        # Before any rating nobody can choose: every arm serves what it gets.
        judging = NO_FILTER if number == 0 and arm != ORACLE else arm
        fresh, unrated = (scores(judging, judges, each) for each in self._measuring_for(arm))
        given = Measured(
            fresh=self._measuring_for(arm)[FRESH].images,
            fresh_scores=fresh,
            unrated_scores=unrated,
            calibration_scores=np.zeros(0) if calibration is None else scores(judging, judges, calibration),
            verdicts=verdicts,
            truth=self._truth,
            seed=self._seed,
        )
        promise = promise_of(self._settings.alpha, self._settings.delta, number)
        found = figures(given, serve=self._settings.serve, promise=promise, index=self._index)
        if arm == ORACLE:
            found["own_threshold"] = None  # the gold quality is no probability
        return {
            "seed": self._seed,
            "arm": arm,
            "round": number,
            "update": self._update_before if self._draws_anew(arm) else None,
            "ratings": {**spent, "all": sum(spent.values())},
            **found,
            "judges": {name: value and file_sha256(Path(value)) for name, value in judges.to_dict().items()},
        }


def _finished(name: str, start: Callable[[], TrainingRun]) -> TrainingRun:
    """The run of that name, started or taken up where there is one, once it has succeeded."""
    run = TrainingRun.objects.filter(name=name).first()
    if run is None:
        run = start()
    elif run.is_finished and run.state != run.State.SUCCEEDED:
        services.resume_run(run=run)
    run = follow(run, is_quiet=True)
    if run.state != run.State.SUCCEEDED:
        raise RuntimeError(f"Run {run.pk} ({run}) is {run.state}. {run.error}")
    return run
