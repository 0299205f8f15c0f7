"""The verbs of training: start, cancel and resume a run, and hand what it made down to generation as a release.

Called alike by pages, API and commands. Nothing here imports torch: the work is done by a process that a worker
starts (training.runner).
"""

import json
from dataclasses import replace
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from generation import embedded_model
from generation.models import Release
from generation.services import POLICY_NAME, SELECTOR_NAME, activate_release, active_release, publish_release
from medsyn.artifacts import ArtifactError, file_sha256, verify_folder
from ratings.csv_schema import read_ratings_file
from ratings.models import Export, Rating, Study
from ratings.services import freeze_export
from training import tasks
from training.cost import Estimate, finetuning_cost, rlhf_cost
from training.finetuning.arguments import DEFAULT_MODEL, LATEST, Arguments, problems_of, with_recipe
from training.models import Checkpoint, TrainingRun
from training.rlhf.config import Checkpoints, RLHFConfig
from training.rlhf.generator_update.settings import UpdateError, UpdateSettings
from training.run_directory import RunDirectory

PIPELINE_NAME = "pipeline"  # folder of the fine-tuned generator in its run directory
_FINETUNING_DIR = "finetuning"  # below the artifact root: runs that were not given a folder
_UPDATES_DIR = "updates"  # below the artifact root: updates of generators
_NUM_UPDATE_SEEDS = 2000
_BAD_ROWS_TOLD = 10


class TrainingError(RuntimeError):
    """A run cannot be started, resumed or released; the text says why and what to do."""


class ArgumentFaults(TrainingError):
    """Arguments of a fine-tuning run are wrong; ``faults`` has one (name of the argument, sentence) each."""

    def __init__(self, faults: list[tuple[str, str]]):
        self.faults = faults
        super().__init__("\n".join(text for _, text in faults))


@transaction.atomic
def train_on_ratings(
    *,
    study: Study | None = None,
    export: Export | None = None,
    config: RLHFConfig,
    generator: str = "",
    name: str = "",
    user=None,
) -> TrainingRun:
    """Queue a run on a study's ratings, frozen into an export as they stand now, or on an export.

    Its directory lies below the artifact root whatever ``config`` says: who asks by page or API sees no server paths.
    Raises StudyError where the study has no rating to export, and what `start_rlhf_run` raises.
    """
    if (study is None) == (export is None):
        raise TrainingError("Choose either a study or an export: a run learns from one set of ratings.")
    if export is None:
        export = freeze_export(study=study, created_by=user)
    if not export.path.is_file():
        raise TrainingError(f"The file of {export} is gone: {export.path}. Export the ratings again.")
    checkpoints = replace(config.training.checkpoints, save_dir=Checkpoints().save_dir)
    config = replace(config, training=replace(config.training, checkpoints=checkpoints))
    return start_rlhf_run(ratings_file=export.path, config=config, generator=generator, name=name, user=user)


@transaction.atomic
def start_rlhf_run(
    *, ratings_file: Path, config: RLHFConfig, generator: str = "", name: str = "", user=None
) -> TrainingRun:
    """Queue the training of selector and policy on a ratings CSV; returns the run's row.

    ``generator`` is the pipeline whose text encoder the policy uses and with which the run will be released; empty:
    the active release's, else medsyn-tiny. The CSV is read whole first: raises RatingsCSVError, or TrainingError.
    """
    rows = read_ratings_file(ratings_file)
    if not rows:
        raise TrainingError(f"{ratings_file} holds no rating. Rate some images and export them first.")
    export = Export.objects.filter(sha256=file_sha256(ratings_file)).first()
    parent = None if generator else active_release()
    folder = _generator_folder(generator, parent)
    if config.synthetic_system.enable_training:
        _dataset_of(folder)  # better now than after an hour
    run = TrainingRun.objects.create(
        purpose=TrainingRun.Purpose.RLHF,
        name=name or f"Selector and policy on {len(rows)} ratings",
        config=_with_files(config, ratings_file, folder).to_dict(),
        generator=str(folder),
        run_directory=_new_run_directory(config.training.checkpoints.save_dir),
        export=export,
        parent_release=parent,
        is_simulated=bool(export and export.has_simulated),
        progress_unit="steps",
        created_by=user,
    )
    _enqueue_on_commit(run)
    return run


def _with_files(config: RLHFConfig, ratings_file: Path, generator: Path) -> RLHFConfig:
    """The configuration with the paths that this run settles."""
    return replace(
        config,
        model_paths=replace(config.model_paths, stable_diffusion=str(generator)),
        data=replace(config.data, ratings_file=str(ratings_file.resolve())),
    )


def estimate_rlhf(*, study: Study | None = None, export: Export | None = None, config: RLHFConfig) -> Estimate:
    """What `train_on_ratings` would cost with these arguments; RatingsCSVError or OSError for a lost export."""
    if export is not None:
        return rlhf_cost(config, len({row.image_path for row in read_ratings_file(export.path)}))
    ratings = Rating.objects.trainable().filter(assignment__study=study)
    return rlhf_cost(config, ratings.values("assignment__image").distinct().count())


def estimate_finetuning(*, arguments: Arguments) -> Estimate:
    """What `start_finetuning` would cost; the dataset's rows are counted."""
    from training.finetuning.dataset import read_rows  # image libraries: only when asked

    columns = {"image_column": arguments.image_column, "caption_column": arguments.caption_column}
    rows, _ = read_rows(arguments.train_data_dir, **columns)
    return finetuning_cost(arguments, len(rows))


def earlier_run(*, ratings_file: Path, config: RLHFConfig, generator: str) -> TrainingRun | None:
    """The newest run for the same ratings (by content), generator and configuration, finished or not."""
    folder = _generator_folder(generator, None)
    exports = Export.objects.filter(sha256=file_sha256(ratings_file))
    for run in TrainingRun.objects.filter(export__in=exports):
        same_files = _with_files(config, Path(run.config["data"]["ratings_file"]), folder)
        if run.config == json.loads(json.dumps(same_files.to_dict())):
            return run
    return None


def checked_arguments(*, output_dir: Path | None = None, **values) -> Arguments:
    """Arguments of a fine-tuning run from plain values, paths taken from the project folder.

    Without ``output_dir`` the run gets a new folder below the artifact root. The dataset's rows are read (its images
    are opened when training starts). Raises ArgumentFaults with everything that is wrong.
    """
    output_dir = output_dir or settings.ARTIFACT_ROOT / _new_run_directory(_FINETUNING_DIR)
    values["train_data_dir"] = settings.BASE_DIR / values["train_data_dir"]
    arguments = with_recipe(Arguments(output_dir=output_dir, **values))
    faults = [(text.split()[0].strip("-:"), text) for text in problems_of(arguments)]
    faults += _model_faults(arguments.pretrained_model_name_or_path) + _dataset_faults(arguments)
    start = arguments.resume_from_checkpoint
    if start not in (None, LATEST) and not (settings.BASE_DIR / start).is_dir():
        faults.append(("resume_from_checkpoint", f"There is no checkpoint folder {start}."))
    if faults:
        raise ArgumentFaults(faults)
    return arguments


def _model_faults(model: str) -> list[tuple[str, str]]:
    folder = embedded_model.EMBEDDED_MODEL_DIR if model == DEFAULT_MODEL else settings.BASE_DIR / model
    if (folder / "model_index.json").is_file():
        return []
    text = (
        f"{folder} is no pipeline folder: it has no model_index.json. Name a generator's folder or {DEFAULT_MODEL}."
    )
    return [("pretrained_model_name_or_path", text)]


def _dataset_faults(arguments: Arguments) -> list[tuple[str, str]]:
    from training.finetuning.dataset import DatasetError, read_rows  # image libraries: only when asked

    columns = {"image_column": arguments.image_column, "caption_column": arguments.caption_column}
    try:
        rows, bad = read_rows(arguments.train_data_dir, **columns)
    except (DatasetError, OSError) as error:
        return [("train_data_dir", str(error))]
    if not rows:
        return [("train_data_dir", f"{arguments.train_data_dir} has no usable row. " + _told(bad))]
    if bad and not arguments.skip_bad_rows:
        return [("train_data_dir", f"{len(bad)} bad rows. {_told(bad)} Correct them, or mark skip_bad_rows.")]
    return []


def _told(bad: list) -> str:
    """The first bad rows as one sentence."""
    more = f" and {len(bad) - _BAD_ROWS_TOLD} more" if len(bad) > _BAD_ROWS_TOLD else ""
    return "; ".join(map(str, bad[:_BAD_ROWS_TOLD])) + more + "." if bad else ""


@transaction.atomic
def start_finetuning(*, arguments: Arguments, name: str = "", user=None) -> TrainingRun:
    """Queue the fine-tuning of a generator; returns the run's row.

    Where an earlier run used the same output folder, that run goes on from its newest checkpoint with the new
    arguments; with the same arguments as a run that succeeded nothing is left to do. Raises TrainingError while a
    worker is at it.
    """
    directory = str(arguments.output_dir.resolve())
    run = TrainingRun.objects.select_for_update().filter(run_directory=directory).first()
    if run and run.state == run.State.RUNNING and not TrainingRun.objects.claimable().filter(pk=run.pk).exists():
        raise TrainingError(f"{directory} belongs to run {run.pk}, which is running. Cancel it or wait.")
    if run and run.state == run.State.SUCCEEDED and run.config == arguments.as_json():
        return run
    run = run or TrainingRun(purpose=TrainingRun.Purpose.FINETUNE, run_directory=directory, created_by=user)
    run.name = name or run.name or f"Fine-tune on {arguments.train_data_dir.resolve().parent.name}"
    run.generator = arguments.pretrained_model_name_or_path
    run.config = arguments.as_json()
    run.progress_total, run.progress_unit = arguments.max_train_steps or 0, "steps"
    run.save()
    run.requeue()
    _enqueue_on_commit(run)
    return run


@transaction.atomic
def start_generator_update(
    *, release: Release | None = None, run: TrainingRun | None = None, name: str = "", user=None, **values
) -> TrainingRun:
    """Queue an update of a release's generator by its selector and policy, or of a finished run's by its own.

    ``values`` are UpdateSettings; the dataset is the one that the generator was trained on unless ``real_data`` names
    another, the seed one that no earlier update had. Raises TrainingError.
    """
    if (release is None) == (run is None):
        raise TrainingError("Name either a release or a finished training of selector and policy.")
    folder = release.folder if release else _chosen_checkpoint(run)
    generator = release.folder / PIPELINE_NAME if release else Path(run.generator)
    updates = TrainingRun.objects.filter(purpose=TrainingRun.Purpose.UPDATE)
    values = {
        "generator": str(generator),
        "selector_file": str(folder / SELECTOR_NAME),
        "policy_file": str(folder / POLICY_NAME),
        "real_data": values.pop("real_data", "") or _dataset_of(generator),
        "seed": updates.count() % _NUM_UPDATE_SEEDS,
        **values,
    }
    try:
        update_settings = UpdateSettings.from_dict(values)
    except UpdateError as error:
        raise TrainingError(str(error)) from error
    # One update follows a run: asked for twice, it is there already.
    directory = run.update_directory if run else _new_run_directory(_UPDATES_DIR)
    update, is_new = TrainingRun.objects.get_or_create(
        run_directory=directory,
        defaults={
            "purpose": TrainingRun.Purpose.UPDATE,
            "name": (name or f"Update the generator of {release or run}")[:100],
            "config": update_settings.to_dict(),
            "generator": str(generator),
            "parent_release": release or run.parent_release,
            "is_simulated": (release or run).is_simulated,
            "progress_unit": "images and steps",
            "created_by": user,
        },
    )
    if is_new:
        _enqueue_on_commit(update)
    return update


def update_after(*, run: TrainingRun, user=None) -> TrainingRun:
    """Queue the update of a finished run's generator by its selector and policy, at its serving threshold."""
    if run.purpose != run.Purpose.RLHF or run.state != run.State.SUCCEEDED:
        raise TrainingError("Only a training of selector and policy that has succeeded can update its generator.")
    update = start_generator_update(
        run=run, user=user, quality_threshold=run.config["generation"]["quality_threshold"]
    )
    TrainingRun.objects.filter(pk=run.pk).update(error="")  # an earlier refusal is no longer true
    return update


def follow_up(*, run: TrainingRun) -> TrainingRun | None:
    """Queue what a run that has succeeded asks for: with enable_training, the update of its generator.

    Called again, it gives the update that is there. Where it raises TrainingError, the run says why on its page.
    """
    wanted = run.purpose == run.Purpose.RLHF and run.config["synthetic_system"]["enable_training"]
    if not wanted or run.state != run.State.SUCCEEDED:
        return None
    try:
        return update_after(run=run, user=run.created_by)
    except TrainingError as error:
        refusal = f"The update of its generator could not be queued: {error}"
        TrainingRun.objects.filter(pk=run.pk).update(error=refusal)
        raise


def _dataset_of(generator: Path) -> str:
    """The dataset CSV that a generator was trained on; empty for one that draws phantoms. Raises TrainingError."""
    made_by = next((run for run in TrainingRun.objects.all() if run.path / PIPELINE_NAME == generator), None)
    if made_by is None:
        published = Release.objects.filter(digest=generator.parent.name).first()
        source = TrainingRun.objects.filter(release=published).first() if published else None
        if source is not None and Path(source.generator) != generator and source.purpose == source.Purpose.RLHF:
            return _dataset_of(Path(source.generator))
        made_by = source
    if made_by is not None and made_by.purpose == made_by.Purpose.FINETUNE:
        return made_by.config["train_data_dir"]
    if made_by is not None and made_by.purpose == made_by.Purpose.UPDATE:
        return made_by.config["real_data"]
    if embedded_model.draws_phantoms(generator):
        return ""
    raise TrainingError(
        f"Which dataset the generator {generator} was trained on is not known here, and an update replays its real "
        "images. Fine-tune the generator in the application, or name the dataset with training.rlhf.generator_update."
    )


def cancel_run(*, run: TrainingRun) -> None:
    """End the run at its next report; its checkpoints stay."""
    run.request_cancel()


@transaction.atomic
def resume_run(*, run: TrainingRun) -> None:
    """Queue a failed or cancelled run again; it goes on from its newest complete checkpoint."""
    run = TrainingRun.objects.select_for_update().get(pk=run.pk)
    if run.state not in (run.State.FAILED, run.State.CANCELLED):
        raise TrainingError(f"Only a failed or cancelled run can be resumed; this one is {run.state}.")
    run.requeue()
    _enqueue_on_commit(run)


def release(
    *,
    run: TrainingRun,
    checkpoint: Checkpoint | None = None,
    quality_threshold: float | None = None,
    name: str = "",
    activate: bool = False,
) -> Release:
    """Publish what a run trained together with its generator, and activate it if asked.

    checkpoint: None takes the one the run's report chose, or the newest of a run that has not finished.
    quality_threshold: 0 to 1; None takes the configuration's generation threshold.
    The files are compared with their manifest first. Raises TrainingError or generation.services.ReleaseError.
    """
    if run.purpose == run.Purpose.UPDATE:
        published = _release_update(run, quality_threshold=quality_threshold, name=name)
        return activate_release(release=published) if activate else published
    if run.purpose != run.Purpose.RLHF:
        raise TrainingError("A release needs a selector and a policy. Train them on this generator's rated images.")
    folder = checkpoint.path if checkpoint else _chosen_checkpoint(run)
    try:
        verify_folder(folder)
    except ArtifactError as error:
        raise TrainingError(str(error)) from error
    if quality_threshold is None:
        quality_threshold = run.config["generation"]["quality_threshold"]
    published = publish_release(
        pipeline_folder=Path(run.generator),
        selector_file=folder / SELECTOR_NAME,
        policy_file=folder / POLICY_NAME,
        quality_threshold=quality_threshold,
        name=name or run.name,
        manifest={"run": run.pk, "checkpoint": folder.name, "report": run.figures, "config": run.config},
        is_simulated=run.is_simulated,
    )
    TrainingRun.objects.filter(pk=run.pk).update(release=published)
    return activate_release(release=published) if activate else published


def _release_update(run: TrainingRun, *, quality_threshold: float | None, name: str) -> Release:
    """The updated generator with the selector and policy that chose its images; raises TrainingError."""
    pipeline = run.path / PIPELINE_NAME
    if not run.figures.get("accepted") or not pipeline.is_dir():
        reasons = " ".join(run.figures.get("objections", [])) or "It has not been decided yet."
        raise TrainingError(f"Only an accepted update can be released. {reasons}")
    published = publish_release(
        pipeline_folder=pipeline,
        selector_file=Path(run.config["selector_file"]),
        policy_file=Path(run.config["policy_file"]),
        quality_threshold=run.config["quality_threshold"] if quality_threshold is None else quality_threshold,
        name=name or run.name,
        manifest={"run": run.pk, "report": run.figures, "config": run.config},
        is_simulated=run.is_simulated,
    )
    TrainingRun.objects.filter(pk=run.pk).update(release=published)
    return published


def _chosen_checkpoint(run: TrainingRun) -> Path:
    """The folder that the report names, else the newest checkpoint; raises TrainingError where there is neither."""
    if "checkpoint" in run.figures:
        return run.path / run.figures["checkpoint"]
    newest = RunDirectory(run.path).latest()
    if newest is None:
        raise TrainingError(f"Run {run.pk} has no complete checkpoint yet. Let it train or resume it.")
    return newest


def _generator_folder(generator: str, parent: Release | None) -> Path:
    """The folder of the named generator, of the active release, or of medsyn-tiny; raises TrainingError."""
    if parent:
        return parent.folder / "pipeline"
    folder = Path(generator).resolve() if generator else embedded_model.EMBEDDED_MODEL_DIR
    if not (folder / "model_index.json").is_file():
        raise TrainingError(f"{folder} is no pipeline folder: it has no model_index.json. Name a generator's folder.")
    return folder


def _new_run_directory(parent: str) -> str:
    """``<parent>/<timestamp>``, not used by any run: absolute, or below the artifact root."""
    stamp = f"{timezone.now():%Y%m%d-%H%M%S}"
    number, directory = 1, f"{parent}/{stamp}"
    while (settings.ARTIFACT_ROOT / directory).exists() or TrainingRun.objects.filter(
        run_directory=directory
    ).exists():
        number += 1
        directory = f"{parent}/{stamp}-{number}"
    return directory


def _enqueue_on_commit(run: TrainingRun) -> None:
    # robust: the row is stored; where the broker cannot be reached the sweep rings again.
    transaction.on_commit(lambda: tasks.run_training.delay(run.pk), robust=True)
