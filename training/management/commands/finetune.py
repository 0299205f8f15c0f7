"""Fine-tune a generator on a dataset CSV, here and now or in a worker; the run is recorded."""

from django.core.management.base import BaseCommand, CommandError

from training import services
from training.finetuning.arguments import add_flags, from_options, problems_of
from training.foreground import follow
from training.models import TrainingRun


class Command(BaseCommand):
    help = (
        "Fine-tune a generator on a dataset CSV (path,Text,modality). Called again with the same --output_dir it "
        "goes on from the newest checkpoint, or says that everything is done."
    )

    def add_arguments(self, parser):
        add_flags(parser)
        parser.add_argument("--name", default="", help="name of the run")
        parser.add_argument("--background", action="store_true", help="leave the work to a worker")

    def handle(self, **options):
        arguments = from_options(options)
        problems = problems_of(arguments)
        if problems:
            raise CommandError("\n".join(problems))
        try:
            run = services.start_finetuning(arguments=arguments, name=options["name"])
        except services.TrainingError as error:
            raise CommandError(str(error)) from error
        if options["background"]:
            self.stdout.write(f"Run {run.pk} is queued; a worker will train it.")
            return
        if not run.is_finished:
            run = follow(run, is_quiet=options["verbosity"] == 0)
        if run.state != TrainingRun.State.SUCCEEDED:
            raise CommandError(f"Run {run.pk} is {run.state}. {run.error}".strip())
        self.stdout.write(f"Run {run.pk} is finished. The pipeline: {run.path / 'pipeline'}")
