"""Let the simulated experts of a study rate what they have not rated yet."""

import uuid

import numpy as np
from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from generation.models import GeneratedImage
from medsyn.imaging import load
from ratings.models import Assignment, GoldGrade, Membership, Study
from ratings.services import draw_places, submit_rating
from training.simulation.experts import Expert, answering_ms, draw_expert, rate, rate_known

GOLDS = ("judge", "sampler")
Showing = tuple[int, int]  # key of an image, 1 for its first showing or 2 for the hidden repeat


class Command(BaseCommand):
    help = (
        "Simulated experts rate a study's open assignments, through the same services as people: training round, "
        "hidden repeats and open pools included."
    )

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
        if not any(self._open(row, member) for member in experts):
            self.stdout.write("Every simulated expert has rated everything.")
            return
        known = self._known(row)
        images = list(row.images.exclude(pk__in=known).select_related("prompt").order_by("pk"))
        quality = self._judged(images) if gold == "judge" else self._sampled(images)
        number_of_ratings = 0
        for number, member in enumerate(experts):
            rng = np.random.default_rng([seed, row.pk, number])
            grades = self._grades(quality, known, draw_expert(member.expert_level, rng), rng)
            number_of_ratings += self._rate(row, member, grades, rng)
        self.stdout.write(f"{number_of_ratings} simulated ratings by {len(experts)} experts.")

    def _open(self, study: Study, member: Membership) -> list[Assignment]:
        """The reader's open places in their order, the list filled up from the open pool where there is one."""
        draw_places(study=study, reader=member.reader)
        return list(study.assignments.filter(reader=member.reader).open().order_by("position"))

    def _known(self, study: Study) -> dict[int, int]:
        """Known grade by key, of images that the study or its training round shows."""
        shown = GoldGrade.objects.filter(image__study_images__study=study)
        taught = GoldGrade.objects.filter(image__assignments__study=study)
        return dict((shown | taught).distinct().order_by("image").values_list("image", "grade"))

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

    def _grades(
        self, quality: dict[int, float], known: dict[int, int], expert: Expert, rng: np.random.Generator
    ) -> dict[Showing, int]:
        """What the expert says of every image at first and at a second sight. All of it is drawn beforehand, so that
        an interrupted run gives the same grades, whichever images an open pool hands out."""
        keys, gold_keys = sorted(quality), sorted(known)
        found: dict[Showing, int] = {}
        for showing in (1, 2):
            drawn = rate(np.array([quality[key] for key in keys]), expert, rng) if keys else np.zeros(0, int)
            found |= {(key, showing): int(grade) for key, grade in zip(keys, drawn, strict=True)}
            drawn = rate_known(np.array([known[key] for key in gold_keys], dtype=int), expert, rng)
            found |= {(key, showing): int(grade) for key, grade in zip(gold_keys, drawn, strict=True)}
        return found

    def _rate(self, study: Study, member: Membership, grades: dict[Showing, int], rng: np.random.Generator) -> int:
        number = 0
        with tqdm(desc=member.reader.username, unit="rating") as bar:
            while places := self._open(study, member):
                bar.total = bar.n + len(places)
                for place in places:
                    submit_rating(
                        assignment=place,
                        reader=member.reader,
                        value=grades[place.image_id, place.occurrence],
                        client_uuid=uuid.uuid5(place.public_id, "simulated"),
                        active_ms=answering_ms(rng),
                    )
                    bar.update()
                number += len(places)
        return number
