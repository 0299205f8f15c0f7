"""Generate images of uneven quality and open the demonstration studies on them."""

from pathlib import Path

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from generation.diffusion.phantoms import FINDINGS, caption
from generation.models import GeneratedImage, GenerationJob
from generation.parameters import Parameters
from generation.services import start_generation
from ratings.models import GoldGrade, Study
from ratings.services import create_study, enrol_reader, set_gold
from training.simulated_rows import JobUnfinished, draw_now, expert_account, import_phantoms
from training.simulation.gold import draw_gold

SIMULATED_STUDY = "Demo study (simulated experts)"
CLINICIAN_STUDY = "Try it yourself (phantoms)"
CLINICIAN_IMAGES = 20
GOLD_BATCH = "Gold phantoms (planted defects)"
GOLD_SEED = 80_000_000  # beyond the seeds of medsyn-tiny's training and of the demonstration's dataset
# How the two studies are read; gold images only where the images themselves are phantoms.
SIMULATED_PROTOCOL = {"repeat_share": 0.1, "gold_share": 0.05}
CLINICIAN_PROTOCOL = {"gold_share": 0.1, "num_training_images": 6}
SIMULATED_LEVELS = (1, 2, 2, 3, 3)  # expertise of the simulated experts
# Samplers from hasty and harsh to careful, so that there is something to tell apart: (steps, guidance).
QUALITIES = ((2, 1.0), (4, 7.5), (6, 1.5), (12, 3.0))


class Command(BaseCommand):
    help = "Generate images with medsyn-tiny or a model fine-tuned from it, and open a study for simulated experts."

    def add_arguments(self, parser):
        parser.add_argument("--model", default="", help="pipeline folder (default: active release or medsyn-tiny)")
        parser.add_argument("--name", default=SIMULATED_STUDY, help="name of the simulated study")
        parser.add_argument("--prompts_file", type=Path, help="one prompt per line (default: the phantoms' captions)")
        parser.add_argument("--num_images", type=int, default=180)
        parser.add_argument("--seed", type=int, default=2026)

    def handle(self, model, name, prompts_file, num_images, seed, **_):
        if Study.objects.filter(name=name).exists():
            self.stdout.write(f"The study {name!r} is there already.")
            return
        wants_gold = prompts_file is None  # else the images need not be phantoms, and phantoms no measure for them
        num_drawn = num_images - round(SIMULATED_PROTOCOL["gold_share"] * num_images) if wants_gold else num_images
        share = -(-num_drawn // len(QUALITIES))
        prompts = self._read_prompts(prompts_file)
        jobs = [self._job(number, model, prompts, share, seed) for number in range(len(QUALITIES))]
        images = [image for job in jobs for image in self._finish(job)[:share]][:num_drawn]
        has_gold = wants_gold and all(image.is_phantom for image in images)
        with transaction.atomic():
            if has_gold:
                self._make_gold(num_images)
            self._open_simulated(name, images, seed, has_gold=has_gold)
            self._open_for_clinician(images, seed, has_gold=has_gold)
        number = Study.objects.get(name=name).study_images.count()
        self.stdout.write(f"{number} images in {name!r}, {number - len(images)} of them of known grade.")

    def _read_prompts(self, path: Path | None) -> list[str]:
        if path is None:
            return []
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not prompts:
            raise CommandError(f"{path} holds no prompt. Write one per line.")
        return list(dict.fromkeys(prompts))

    def _job(self, number: int, model: str, prompts: list[str], share: int, seed: int) -> GenerationJob:
        """The job of one sampler quality; an interrupted command finds its own again by model and seed."""
        job_seed = seed + 100_000 * number
        existing = GenerationJob.objects.filter(seed=job_seed, pretrained_model=model, created_by=None).first()
        if existing:
            return existing
        steps, guidance = QUALITIES[number]
        prompts = prompts or self._captions(number, share, job_seed)
        return start_generation(
            prompts=prompts,
            user=None,
            num_images=-(-share // len(prompts)),
            seed=job_seed,
            parameters=Parameters(num_inference_steps=steps, guidance_scale=guidance, batch_size=8),
            pretrained_model=model,
        )

    def _captions(self, number: int, share: int, seed: int) -> list[str]:
        """Captions of every class in turn, each once; every quality begins with another class."""
        classes = (FINDINGS[(number + len(QUALITIES) * index) % len(FINDINGS)] for index in range(share))
        return list(dict.fromkeys(caption(each, seed + index) for index, each in enumerate(classes)))

    def _finish(self, job: GenerationJob) -> list[GeneratedImage]:
        sampling = f"{job.parameters['num_inference_steps']} steps, guidance {job.parameters['guidance_scale']:g}"
        self.stdout.write(f"{job.job_prompts.count() * job.num_images} images of {sampling}")
        try:
            draw_now(job)
        except JobUnfinished as error:
            raise CommandError(str(error)) from error
        blocked = job.images.blocked().count()
        if blocked:
            self.stderr.write(f"{blocked} of {job.images.count()} images copy training images and are left out.")
        return list(job.images.unblocked().order_by("position"))

    def _make_gold(self, num_images: int) -> None:
        """A pool of phantoms with planted defects, enough for both studies and a training round."""
        if GoldGrade.objects.filter(image__batch=GOLD_BATCH).exists():
            return
        drawn = list(draw_gold(6 + num_images // 40, seed=GOLD_SEED))
        images = import_phantoms(((each.phantom.pixels, each.phantom.caption) for each in drawn), batch=GOLD_BATCH)
        for image, each in zip(images, drawn, strict=True):
            set_gold(image=image, grade=each.grade, rationale=each.rationale, set_by=None)

    def _open_simulated(self, name: str, images: list[GeneratedImage], seed: int, *, has_gold: bool) -> None:
        study = create_study(
            name=name,
            images=images,
            order_seed=seed,
            is_simulated=True,
            protocol=self._protocol(SIMULATED_PROTOCOL, has_gold),
            description="Rated by simulated experts to show the loop. No clinician has rated these images.",
        )
        for number, level in enumerate(SIMULATED_LEVELS, start=1):
            enrol_reader(study=study, reader=expert_account(number), expert_level=level, is_simulated=True)

    @staticmethod
    def _protocol(fields: dict, has_gold: bool) -> dict:
        """Without gold images only what needs none."""
        return fields if has_gold else {name: value for name, value in fields.items() if name == "repeat_share"}

    def _open_for_clinician(self, images: list[GeneratedImage], seed: int, *, has_gold: bool) -> None:
        """A few of the images for the demonstration's clinician to try the rating page on, after a training round."""
        clinician = get_user_model().objects.filter(username="clinician").first()
        if clinician is None or Study.objects.filter(name=CLINICIAN_STUDY).exists():
            return
        study = create_study(
            name=CLINICIAN_STUDY,
            images=images[:: max(len(images) // CLINICIAN_IMAGES, 1)][:CLINICIAN_IMAGES],
            order_seed=seed + 1,
            protocol=self._protocol(CLINICIAN_PROTOCOL, has_gold),
            created_by=get_user_model().objects.filter(username="admin").first(),
            description="Some of the demonstration's images, to try the rating page on.",
        )
        enrol_reader(study=study, reader=clinician, expert_level=2)
