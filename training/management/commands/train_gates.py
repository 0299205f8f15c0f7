"""`manage.py train_gates`: gates that stop hopeless candidates early, for a release."""

from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from generation.gate_standing import gate_standing
from generation.models import Release
from generation.parameters import ParameterError
from generation.services import ReleaseError, activate_release
from training.release_gates import GatesError, train_release_gates


class Command(BaseCommand):
    help = (
        "Train gates for a release from images that nobody rates, and publish the release that has them. "
        "A gate that saves too little is switched off, and says so."
    )

    def add_arguments(self, parser):
        parser.add_argument("--release", help="name or digest (default: the active one)")
        parser.add_argument("--prompts_file", type=Path, help="one prompt per line (default: those of its images)")
        parser.add_argument("--num_trajectories", type=int, default=1000, help="images drawn (default %(default)s)")
        parser.add_argument(
            "--recall", type=float, default=0.8, help="share of passing images that gates let through"
        )
        parser.add_argument("--num_inference_steps", type=int, help="gates serve calls with the same number only")
        parser.add_argument("--guidance_scale", type=float, help="likewise")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--name", default="", help="name of the new release (default: the old one's)")
        parser.add_argument("--activate", action="store_true", help="serve it from now on, where its gates are on")

    def handle(self, **options):
        release = self._release(options["release"])
        sampling = {
            key: options[key] for key in ("num_inference_steps", "guidance_scale") if options[key] is not None
        }
        try:
            gated = train_release_gates(
                release=release,
                prompts=self._prompts(options["prompts_file"]),
                sampling=sampling,
                **{key: options[key] for key in ("num_trajectories", "recall", "seed", "name")},
            )
            standing = gate_standing(gated)
            if options["activate"] and standing.is_on:
                activate_release(release=gated)
        except (GatesError, ParameterError, ReleaseError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(standing.sentence)
        gated.refresh_from_db()
        state = "active" if gated.is_active else "published, not active"
        self.stdout.write(f"Release {gated.digest[:12]} ({gated.name}) is {state}.")

    def _release(self, named: str | None) -> Release:
        if named is None:
            found = list(Release.objects.filter(is_active=True))
        else:
            found = list(Release.objects.filter(digest__startswith=named)) or list(Release.objects.filter(name=named))
        if len(found) != 1:
            known = ", ".join(f"{one.digest[:12]} ({one.name})" for one in Release.objects.all()[:10]) or "none yet"
            raise CommandError(f"Name one release by its digest with --release. Known: {known}.")
        return found[0]

    def _prompts(self, path: Path | None) -> list[str]:
        if path is None:
            return []
        try:
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"--prompts_file {path} cannot be read: {error}") from error
