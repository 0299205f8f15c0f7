"""Let the simulated experts of a study rate what they have not rated yet."""

import uuid

import numpy as np
from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from generation.models import GeneratedImage
from medsyn.imaging import load
from ratings.models import Assignment, Membership, Study
from ratings.services import submit_rating
from training.simulation.experts import draw_expert, rate

GOLDS = ("judge", "sampler")


class Command(BaseCommand):
    help = "Simulated experts rate a study's open assignments, through the same service as people."

    def add_arguments(self, parser):
        parser.add_argument("--study", required=True, help="name of a study marked simulated")
        parser.add_argument(
            "--gold",
            choices=GOLDS,
            default="judge",
            help="what they go by: the judge network (phantoms only), or how carefully an image was sampled",
        )
        parser.add_argument("--seed", type=int, default=0)

    def handle(self, study, gold, seed, **_):
        row = Study.objects.filter(name=study, is_simulated=True).first()
        if row is None:
            known = ", ".join(Study.objects.filter(is_simulated=True).values_list("name", flat=True)) or "none"
            raise CommandError(f"There is no simulated study {study!r}. Simulated studies: {known}.")
        experts = row.memberships.filter(is_simulated=True).select_related("reader").order_by("pk")
        open_places = {member.pk: self._open(row, member) for member in experts}
        if not any(open_places.values()):
            self.stdout.write("Every simulated expert has rated everything.")
            return
        images = list(row.images.select_related("prompt").order_by("pk"))
        quality = self._judged(images) if gold == "judge" else self._sampled(images)
        for number, member in enumerate(experts):
            self._rate(member, open_places[member.pk], quality, np.random.default_rng([seed, row.pk, number]))
        self.stdout.write(f"{sum(map(len, open_places.values()))} simulated ratings by {len(experts)} experts.")

    def _open(self, study: Study, member: Membership) -> list[Assignment]:
        return list(study.assignments.filter(reader=member.reader).open())

    def _sampled(self, images: list[GeneratedImage]) -> dict[int, float]:
        """q by image key: the logarithm of the sampler's steps, which is known and not to be seen in any file."""
        without = [image for image in images if "num_inference_steps" not in image.parameters]
        if without:
            raise CommandError(f"{len(without)} images do not say how they were sampled. Use --gold judge.")
        return {image.pk: float(np.log(image.parameters["num_inference_steps"])) for image in images}

    def _judged(self, images: list[GeneratedImage]) -> dict[int, float]:
        """q by image key: what the judge reads in the image (training.simulation.judge)."""
        import torch

        from training.simulation.judge import SIZE, Judge, classes_of, gold_quality

        try:
            classes = classes_of([image.prompt.text for image in images])
        except ValueError as error:
            raise CommandError(f"{error} Use --gold sampler.") from error
        pixels = np.stack([load(image.path).to_rgb(SIZE) for image in images])
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        quality = gold_quality(Judge.load(), tensor, classes)
        return dict(zip((image.pk for image in images), quality.tolist(), strict=True))

    def _rate(
        self, member: Membership, places: list[Assignment], quality: dict[int, float], rng: np.random.Generator
    ) -> None:
        """Grades for all images are drawn first, so that an interrupted run gives the same ones."""
        keys = sorted(quality)
        grades = rate(np.array([quality[key] for key in keys]), draw_expert(member.expert_level, rng), rng)
        by_image = dict(zip(keys, grades.tolist(), strict=True))
        for place in tqdm(places, desc=member.reader.username, unit="rating"):
            submit_rating(
                assignment=place,
                reader=member.reader,
                value=by_image[place.image_id],
                client_uuid=uuid.uuid5(place.public_id, "simulated"),
            )
