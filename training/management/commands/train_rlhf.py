"""Train selector and policy from a ratings CSV, here and now or in a worker."""

from dataclasses import replace
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from generation.services import ReleaseError
from ratings.csv_schema import RatingsCSVError
from ratings.models import Study
from ratings.services import StudyError, freeze_export
from training import services
from training.foreground import follow
from training.models import TrainingRun
from training.rlhf.config import ConfigError, RLHFConfig, from_dict, load_config


class Command(BaseCommand):
    help = "Train selector and policy from ratings: a study's, or those of a CSV."

    def add_arguments(self, parser):
        parser.add_argument("--config", default="config.yaml", help="YAML configuration (default: config.yaml)")
        source = parser.add_mutually_exclusive_group()
        source.add_argument("--ratings_file", help="ratings CSV; default: data.ratings_file of the configuration")
        source.add_argument("--study", help="export this study's ratings first and train on them")
        parser.add_argument(
            "--pipeline", default="", help="generator folder; default: the active release's, else medsyn-tiny"
        )
        parser.add_argument("--max_epochs", type=int, help="instead of training.max_epochs")
        parser.add_argument("--name", default="", help="name of the run")
        parser.add_argument("--release", action="store_true", help="publish and activate the result")
        parser.add_argument("--unless_done", action="store_true", help="take up the same run where there is one")
        parser.add_argument("--background", action="store_true", help="leave the work to a worker")

    def handle(self, **options):
        try:
            run = self._run(options)
            if options["background"]:
                self.stdout.write(f"Run {run.pk} is queued; a worker will train it.")
                return
            if not run.is_finished:
                run = follow(run, is_quiet=options["verbosity"] == 0)
            self._report(run)
            if options["release"] and not run.release_id:
                release = services.release(run=run, activate=True)
                self.stdout.write(f"Release {release.digest[:12]} is active.")
        except (ConfigError, RatingsCSVError, StudyError, services.TrainingError, ReleaseError, OSError) as error:
            raise CommandError(str(error)) from error

    def _run(self, options) -> TrainingRun:
        config = load_config(Path(options["config"]))
        if options["max_epochs"] is not None:
            changed = replace(config, training=replace(config.training, max_epochs=options["max_epochs"]))
            config = from_dict(changed.to_dict(), source="--max_epochs")  # within the key's range
        ratings_file = self._ratings_file(options, config)
        if options["unless_done"]:
            earlier = services.earlier_run(ratings_file=ratings_file, config=config, generator=options["pipeline"])
            if earlier:
                return self._take_up(earlier)
        return services.start_rlhf_run(
            ratings_file=ratings_file, config=config, generator=options["pipeline"], name=options["name"]
        )

    def _take_up(self, run: TrainingRun) -> TrainingRun:
        if run.state == run.State.SUCCEEDED:
            self.stdout.write(f"Run {run.pk} has done this already.")
        elif run.is_finished:
            services.resume_run(run=run)
            run.refresh_from_db()
        return run

    def _ratings_file(self, options, config: RLHFConfig) -> Path:
        if not options["study"]:
            return Path(options["ratings_file"] or config.data.ratings_file)
        study = Study.objects.filter(name=options["study"]).first()
        if study is None:
            known = ", ".join(Study.objects.values_list("name", flat=True)) or "none"
            raise CommandError(f"There is no study {options['study']!r}. Studies: {known}.")
        return freeze_export(study=study).path

    def _report(self, run: TrainingRun) -> None:
        if run.state != run.State.SUCCEEDED:
            raise CommandError(f"Run {run.pk} is {run.state}. {run.error}".strip())
        self.stdout.write(f"Run {run.pk} is finished: {run.path}")
        for name, value in sorted(run.figures.items()):
            if isinstance(value, int | float | str):
                self.stdout.write(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}")
