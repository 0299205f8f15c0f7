"""Draw a dataset of procedural phantoms for the demonstration."""

from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand

from medsyn.artifacts import MANIFEST_NAME
from training.simulation.phantom_dataset import write_phantom_dataset


class Command(BaseCommand):
    help = "Draw procedural phantoms (not medical images) with captions into a dataset folder."

    def add_arguments(self, parser):
        parser.add_argument("--output_dir", type=Path, default=settings.VAR_DIR / "demo" / "phantoms")
        parser.add_argument("--num_images", type=int, default=200)
        parser.add_argument("--size", type=int, default=128, help="pixels")
        parser.add_argument("--seed", type=int, default=70_000_000, help="far from medsyn-tiny's training seeds")

    def handle(self, output_dir, num_images, size, seed, **_):
        if (output_dir / MANIFEST_NAME).exists():
            self.stdout.write(f"{output_dir} is there already.")
            return
        path = write_phantom_dataset(output_dir, num_images=num_images, seed=seed, size=size)
        self.stdout.write(f"{num_images} phantoms: {path}")
