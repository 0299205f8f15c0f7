"""The whole loop on tiny random models: dataset CSV -> generator -> images -> ratings -> CSV -> selector and policy
-> release -> filtered images that are rated again. Every stage runs for real; only the networks are small.

Training runs in this process here; tests/training/test_worker_killed.py goes through workers and processes.
"""

import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from django.core.management import CommandError, call_command
from PIL import Image

from generation import engine
from generation.diffusion.presets import TEST, build_pipeline
from generation.models import GeneratedImage, GenerationJob, Release
from generation.parameters import Parameters
from generation.services import start_generation
from medsyn.jobs import execute
from ratings.csv_schema import read_ratings_file
from ratings.models import Assignment, Rating
from ratings.services import add_images, create_study, enrol_reader
from training import runner, services
from training.finetuning import train as finetuning
from training.models import TrainingRun
from training.rlhf import train as rlhf
from training.rlhf.config import from_dict
from training.run_directory import RunDirectory
from training.simulation.phantom_dataset import write_phantom_dataset

PROMPTS = ["Chest X-ray: left pleural effusion", "Chest X-ray: clear lungs", "OCT: many drusen"]
FEW_STEPS = Parameters(num_inference_steps=2, guidance_scale=2.0, batch_size=8)
SMALL = {"embed_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "patch_size": 8, "pretrained": None}
CONFIG = {
    "training": {"max_epochs": 2, "batch_size": 4, "checkpoints": {"save_frequency": 1}},
    "data": {"num_workers": 0},
    "synthetic_system": {"image_size": [32, 32]},
    "selector": {"architecture": {**SMALL, "head_dim": 8, "ensemble_heads": 2}},
    "policy_model": {"architecture": {**SMALL, "fusion_dim": 16}},
}

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.set_num_threads(threads)


def finetune(tmp_path: Path) -> Path:
    """A random model, three steps on twelve phantoms; the folder of the fine-tuned pipeline."""
    dataset = write_phantom_dataset(tmp_path / "phantoms", num_images=12, seed=1, size=32)
    preset = replace(TEST, draws_phantoms=True)
    build_pipeline(preset, captions_for_vocabulary=PROMPTS, seed=0).save_pretrained(tmp_path / "base")
    code = finetuning.main(
        [
            *("--train_data_dir", str(dataset), "--output_dir", str(tmp_path / "tuned")),
            *("--pretrained_model_name_or_path", str(tmp_path / "base"), "--max_train_steps", "3"),
            *("--train_batch_size", "4", "--report_to", "none", "--learning_rate", "1e-3"),
        ]
    )
    assert code == 0
    return tmp_path / "tuned" / "pipeline"


def generate(mode: str, **arguments) -> GenerationJob:
    job = start_generation(prompts=PROMPTS, user=None, mode=mode, num_images=4, seed=7, **arguments)
    execute(GenerationJob, job.pk, engine.run)
    job.refresh_from_db()
    assert job.state == job.State.SUCCEEDED, job.error
    return job


def rate_everything(client, study, grade_of) -> None:
    """Through the API, as the rating page does it."""
    while places := client.get(f"/api/studies/{study.public_id}/queue/").json():
        for place in places:
            picture = client.get(place["image"])
            assert picture.status_code == 200, place
            grade = grade_of(Assignment.objects.get(public_id=place["id"]).image)
            reply = client.post(
                f"/api/assignments/{place['id']}/rating/",
                {"value": grade, "client_uuid": str(uuid.uuid4()), "revision": 0},
                format="json",
            )
            assert reply.status_code in (200, 201), reply.json()


def train(ratings_file: Path, generator: Path) -> TrainingRun:
    config = from_dict(CONFIG, source="test")
    run = services.start_rlhf_run(ratings_file=ratings_file, config=config, generator=str(generator))

    def in_this_process(job: TrainingRun) -> None:
        RunDirectory(job.path).write_config(job.config)
        assert rlhf.main(["--run_directory", str(job.path)]) == 0
        runner.book_results(job)

    execute(TrainingRun, run.pk, in_this_process)
    run.refresh_from_db()
    assert run.state == run.State.SUCCEEDED, run.error
    return run


def test_the_loop_closes(tmp_path, bob, carol, api):
    generator = finetune(tmp_path)
    drawn = generate("baseline", pretrained_model=str(generator), parameters=FEW_STEPS)
    images = list(drawn.images.all())
    assert len({image.sha256 for image in images}) == 12
    assert all(image.is_phantom for image in images)  # the mark of the base model outlives fine-tuning

    study = create_study(name="Loop", images=images, order_seed=1)
    for reader, level in ((bob, 1), (carol, 3)):
        enrol_reader(study=study, reader=reader, expert_level=level)
        rate_everything(api(reader), study, grade_of=lambda image: 1 + image.position % 3)
    assert Rating.objects.submitted().count() == 24

    call_command("export_ratings", "--study", "Loop", "--output", str(tmp_path / "ratings.csv"))
    rows = read_ratings_file(tmp_path / "ratings.csv")
    assert sorted(row.rating for row in rows) == [1] * 8 + [2] * 8 + [3] * 8
    assert {(row.expert_level, row.prompt) for row in rows} == {(level, p) for level in (1, 3) for p in PROMPTS}

    run = train(tmp_path / "ratings.csv", generator)
    assert [checkpoint.name for checkpoint in run.checkpoints.all()] == ["epoch_1", "epoch_2"]
    lenient = services.release(run=run, quality_threshold=0.0, name="lenient", activate=True)

    served = generate("rlhf", parameters=Parameters(**{**FEW_STEPS.as_dict(), "quality_threshold": 0.0}))
    accepted = list(served.images.accepted())
    assert len(accepted) == 12
    assert {image.release for image in accepted} == {lenient}
    assert all(min(image.selector_score, image.policy_score) >= 0 for image in accepted)

    add_images(study=study, images=accepted)
    again = [place for place in study.assignments.filter(reader=bob).open()]
    assert {place.image for place in again} == set(accepted)  # the loop begins anew


def test_what_fails_the_threshold_is_never_served(tmp_path, bob, api):
    generator = finetune(tmp_path)
    drawn = generate("baseline", pretrained_model=str(generator), parameters=FEW_STEPS)
    study = create_study(name="Strict", images=list(drawn.images.all()), order_seed=1)
    enrol_reader(study=study, reader=bob, expert_level=2)
    rate_everything(api(bob), study, grade_of=lambda image: 1 + image.position % 3)
    call_command("export_ratings", "--study", "Strict", "--output", str(tmp_path / "ratings.csv"))
    run = train(tmp_path / "ratings.csv", generator)
    services.release(run=run, quality_threshold=1.0, name="strict", activate=True)
    assert Release.objects.get(is_active=True).name == "strict"

    hard = Parameters(**{**FEW_STEPS.as_dict(), "quality_threshold": 1.0, "max_attempts": 2, "num_candidates": 2})
    job = start_generation(prompts=PROMPTS[:1], user=None, mode="rlhf", num_images=1, seed=3, parameters=hard)
    execute(GenerationJob, job.pk, engine.run)
    job.refresh_from_db()
    assert not job.images.accepted().exists()
    assert {image.verdict for image in job.images.all()} == {GeneratedImage.Verdict.REJECTED}

    output = tmp_path / "filtered"
    with pytest.raises(CommandError, match="attempt"):
        call_command(
            "generate",
            *("--mode", "rlhf", "--prompt", PROMPTS[0], "--img_num", "1", "--output_dir", str(output)),
            *("--quality_threshold", "1.0", "--max_attempts", "2", "--num_inference_steps", "2", "--seed", "3"),
        )
    assert list(output.glob("*.png")) == []

    call_command(
        "generate",
        *("--mode", "rlhf", "--prompt", PROMPTS[0], "--img_num", "2", "--output_dir", str(output)),
        *("--quality_threshold", "0", "--num_inference_steps", "2", "--seed", "3"),
    )
    pictures = sorted(output.glob("Chest_X-ray_*_selector_*_policy_*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        facts = json.loads(picture.with_suffix(".json").read_text())
        assert facts["prompt"] == PROMPTS[0]
        with Image.open(picture) as opened:
            assert opened.size == (32, 32)
