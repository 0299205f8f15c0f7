"""Generate images of uneven quality and open the two demonstration studies on them."""

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from generation.diffusion.phantoms import FINDINGS, caption
from generation.models import GeneratedImage, GenerationJob
from generation.parameters import Parameters
from generation.services import start_generation
from medsyn.jobs import execute
from ratings.models import Study
from ratings.services import create_study, enrol_reader

SIMULATED_STUDY = "Demo study (simulated experts)"
CLINICIAN_STUDY = "Try it yourself (phantoms)"
CLINICIAN_IMAGES = 20
SIMULATED_LEVELS = (1, 2, 2, 3, 3)  # expertise of the simulated experts
# Samplers from hasty to careful, so that there is something to tell apart: (steps, guidance).
QUALITIES = ((3, 1.0), (5, 2.0), (8, 3.0), (14, 4.0))


class Command(BaseCommand):
    help = "Generate images with medsyn-tiny or a model fine-tuned from it, and open the demonstration studies."

    def add_arguments(self, parser):
        parser.add_argument("--model", default="", help="pipeline folder (default: active release or medsyn-tiny)")
        parser.add_argument("--num_images", type=int, default=180)
        parser.add_argument("--seed", type=int, default=2026)

    def handle(self, model, num_images, seed, **_):
        if Study.objects.filter(name=SIMULATED_STUDY).exists():
            self.stdout.write(f"The study {SIMULATED_STUDY!r} is there already.")
            return
        images = [image for job in self._jobs(model, num_images, seed) for image in self._finish(job)]
        images = images[:num_images]
        with transaction.atomic():
            self._open_studies(images, seed)
        self.stdout.write(f"{len(images)} images in {SIMULATED_STUDY!r}, {CLINICIAN_IMAGES} in {CLINICIAN_STUDY!r}.")

    def _jobs(self, model: str, num_images: int, seed: int) -> list[GenerationJob]:
        """One job per sampler quality; an interrupted command finds its own again by their seeds."""
        share = -(-num_images // len(QUALITIES))
        jobs = []
        for number, (steps, guidance) in enumerate(QUALITIES):
            job_seed = seed + 100_000 * number
            prompts = list(
                dict.fromkeys(
                    caption(FINDINGS[(number + len(QUALITIES) * index) % len(FINDINGS)], job_seed + index)
                    for index in range(share)
                )
            )
            parameters = Parameters(num_inference_steps=steps, guidance_scale=guidance, batch_size=8)
            existing = GenerationJob.objects.filter(seed=job_seed, pretrained_model=model, created_by=None).first()
            jobs.append(
                existing
                or start_generation(
                    prompts=prompts,
                    user=None,
                    num_images=1,
                    seed=job_seed,
                    parameters=parameters,
                    pretrained_model=model,
                )
            )
        return jobs

    def _finish(self, job: GenerationJob) -> list[GeneratedImage]:
        from generation import engine  # torch: only once there is something to draw

        if job.state in (job.State.FAILED, job.State.CANCELLED):
            job.requeue()
        execute(GenerationJob, job.pk, engine.run)
        job.refresh_from_db()
        if job.state != job.State.SUCCEEDED:
            raise CommandError(f"Generation job {job.pk} is {job.state}. {job.error} Run the command again.")
        return list(job.images.order_by("position"))

    def _open_studies(self, images: list[GeneratedImage], seed: int) -> None:
        people = get_user_model()
        simulated = create_study(
            name=SIMULATED_STUDY,
            images=images,
            order_seed=seed,
            is_simulated=True,
            description="Rated by simulated experts to show the loop. No clinician has rated these images.",
        )
        for number, level in enumerate(SIMULATED_LEVELS, start=1):
            reader, is_new = people.objects.get_or_create(username=f"simulated-{number}")
            if is_new:
                reader.set_unusable_password()
                reader.save()
            enrol_reader(study=simulated, reader=reader, expert_level=level, is_simulated=True)
        own = create_study(
            name=CLINICIAN_STUDY,
            images=images[:: max(len(images) // CLINICIAN_IMAGES, 1)][:CLINICIAN_IMAGES],
            order_seed=seed + 1,
            description="Twenty phantoms to try the rating page on.",
        )
        clinician = people.objects.filter(username="clinician").first()
        if clinician:
            enrol_reader(study=own, reader=clinician, expert_level=2)
