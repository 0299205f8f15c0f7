"""Jobs drawn for real by tiny random models: what is stored, how it resumes, and that it can be drawn again."""

import dataclasses
import errno
import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from generation import engine, production
from generation.models import GeneratedImage, GenerationJob
from generation.parameters import Parameters
from generation.records import png_bytes
from generation.services import ledger_of, retry_generation, start_generation
from generation.tasks import run_generation_job
from medsyn.jobs import JobCancelled, JobError, JobInterrupted

pytestmark = [
    pytest.mark.django_db,
    # diffusers' own, on its way to newer NumPy and torch
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

PROMPTS = ["Chest X-ray: normal lung fields without infiltrates", "Brain MRI: left mass, T2 weighted axial slice"]
QUICK = Parameters(num_inference_steps=2, guidance_scale=3.0, batch_size=2)


@pytest.fixture(autouse=True)
def cpu(settings, monkeypatch):
    settings.DEVICE = "cpu"
    settings.JOB_LEASE_SECONDS = 3600  # the heartbeat's own connection waits for this test's transaction
    # Reports come after batches only, however slow the machine is.
    monkeypatch.setattr(engine, "_SECONDS_BETWEEN_REPORTS", float("inf"))


@pytest.fixture
def start(alice, tiny_files, enqueued):
    """``start(**changes)``: a small queued job of the tiny generator, with a fixed seed."""

    def job(*, parameters=QUICK, **changes) -> GenerationJob:
        given = {"prompts": PROMPTS, "num_images": 2, "seed": 40, "user": alice, "parameters": parameters} | changes
        if given.get("mode") != "rlhf" and "release" not in given:
            given.setdefault("pretrained_model", str(tiny_files["pipeline_folder"]))
        return start_generation(**given)

    return job


def quick(**changes) -> Parameters:
    return Parameters(**QUICK.as_dict() | changes)


def run(job: GenerationJob) -> GenerationJob:
    run_generation_job(job.pk)
    job.refresh_from_db()
    return job


def pixels(job: GenerationJob) -> dict[int, bytes]:
    """What the images of a job look like, by position."""
    return {image.position: Image.open(image.path).tobytes() for image in job.images.all()}


def threshold_that_splits(release) -> float:
    """A threshold that some images of the random models reach and others do not."""
    models = engine.models_for(release, "", "float32")
    call = production.Call(tuple(PROMPTS), 6, 40, "baseline", QUICK)
    drawn = [image for batch in production.draw_baseline(models, call) for image in batch]
    scores = production.judge(models, [one.prompt for one in drawn], [one.picture for one in drawn])
    return float(np.quantile(np.minimum(*map(np.array, scores)), 0.7))


# --- baseline ---


def test_every_image_has_a_file_a_row_and_a_record(start, artifact_root, tiny_files):
    job = run(start())
    assert (job.state, job.progress_done, job.progress_total) == ("succeeded", 4, 4)
    images = list(job.images.order_by("position"))
    assert [image.seed for image in images] == [40, 41, 42, 43], "the predecessor drew them all from one seed"
    assert [image.prompt.text for image in images] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert len(set(pixels(job).values())) == 4
    for image in images:
        assert image.verdict == "unfiltered"
        assert image.file == f"images/{image.public_id.hex[:2]}/{image.public_id}.png"
        assert hashlib.sha256(image.path.read_bytes()).hexdigest() == image.sha256
        with Image.open(image.path) as picture:
            assert picture.size == (image.width, image.height) == (32, 32)
            assert picture.text["Comment"].startswith("Synthetic")
            assert picture.text["Description"] == image.prompt.text
        facts = json.loads(image.path.with_suffix(".json").read_text())
        assert (facts["prompt"], facts["seed"], facts["sha256"]) == (image.prompt.text, image.seed, image.sha256)
        assert facts["weights_sha256"] == {"generator": image.weights_sha256}
        for private in (str(artifact_root), str(tiny_files["pipeline_folder"].parent)):
            assert private.encode() not in image.path.read_bytes() + image.path.with_suffix(".json").read_bytes()


def test_a_seed_makes_the_same_image_alone_and_in_company(start):
    together = pixels(run(start(parameters=quick(batch_size=4))))
    alone = pixels(run(start(parameters=quick(batch_size=1))))
    for position, picture in together.items():
        difference = np.frombuffer(picture, np.uint8).astype(int) - np.frombuffer(alone[position], np.uint8)
        assert np.abs(difference).max() <= 1, "rounding may differ, the image may not"


def test_half_precision_on_the_cpu_is_recorded_as_what_it_became(start):
    job = run(start(num_images=1, parameters=quick(precision="float16")))
    assert job.state == "succeeded"
    assert {image.parameters["precision"] for image in job.images.all()} == {"float32"}
    assert all(np.frombuffer(picture, np.uint8).std() > 0 for picture in pixels(job).values())


# --- rlhf ---


def test_only_what_selector_and_policy_accept_is_served(start, tiny_release):
    threshold = threshold_that_splits(tiny_release)
    job = run(start(mode="rlhf", num_images=3, parameters=quick(quality_threshold=threshold, max_attempts=3)))
    assert job.state == "succeeded"
    served, rejected = list(job.images.served()), list(job.images.filter(verdict="rejected"))
    assert served and rejected
    assert len(served) == len(ledger_of(job).filled_places) <= 6
    # Judged again, one by one, from the stored files: the verdicts stand.
    models = engine.models_for(tiny_release, "", "float32")
    for image in job.images.all():
        scores = production.judge(models, [image.prompt.text], [Image.open(image.path)])
        (selector,), (policy,) = scores
        assert (selector, policy) == pytest.approx((image.selector_score, image.policy_score), abs=1e-4)
        assert (image.verdict == "accepted") == (min(image.selector_score, image.policy_score) >= threshold)
        assert image.seed == job.seed + image.position
        assert image.release == tiny_release
    facts = json.loads(served[0].path.with_suffix(".json").read_text())
    assert facts["attempts"][-1]["accepted"] and not any(one["accepted"] for one in facts["attempts"][:-1])
    assert facts["weights_sha256"].keys() == {"generator", "selector", "policy"}


def test_when_nothing_passes_nothing_is_served(start, tiny_release):
    """The predecessor served the last image."""
    job = run(start(mode="rlhf", parameters=quick(quality_threshold=0.99, max_attempts=2, num_candidates=1)))
    assert job.state == "failed"
    assert "4 of 4 images found no candidate that passes" in job.error
    assert "2 attempts of 1 (8 candidates" in job.error
    assert not job.images.accepted().exists()
    assert job.images.count() == 8, "every attempt is recorded"
    retry_generation(job=job)
    assert run(job).state == "failed"
    assert job.images.count() == 8, "its attempts are spent"


# --- resuming ---


def stop_after(monkeypatch, job_class, batches: int, error: type[Exception]) -> None:
    """Let the job report so many batches, then raise."""
    report, calls = job_class.report, []

    def counted(self, *values):
        report(self, *values)
        calls.append(values)
        if len(calls) == batches:
            raise error

    monkeypatch.setattr(job_class, "report", counted)


@pytest.mark.parametrize("mode", ["baseline", "rlhf"])
@pytest.mark.parametrize("batches", [1, 3])
def test_an_interrupted_job_ends_as_if_it_had_not_been(start, tiny_release, monkeypatch, mode, batches):
    threshold = threshold_that_splits(tiny_release)
    parameters = quick(quality_threshold=threshold, max_attempts=2, num_candidates=2)
    values = {"mode": mode, "num_images": 4, "parameters": parameters, "release": tiny_release}
    whole = run(start(**values))
    job = start(**values)
    with monkeypatch.context() as patch:
        stop_after(patch, GenerationJob, batches, JobInterrupted)
        assert run(job).state == "queued"
        stored = set(job.images.values_list("position", flat=True))
        assert 0 < len(stored) < whole.images.count()
    assert run(job).state == "succeeded"
    assert pixels(job) == pixels(whole)
    verdicts = [list(one.images.order_by("position").values_list("position", "verdict")) for one in (job, whole)]
    assert verdicts[0] == verdicts[1]


def test_cancelling_keeps_what_was_made_and_going_on_makes_the_rest(start, monkeypatch):
    job = start(num_images=3)
    with monkeypatch.context() as patch:
        stop_after(patch, GenerationJob, 1, JobCancelled)
        assert run(job).state == "cancelled"
    assert job.images.count() == 2
    retry_generation(job=job)
    assert run(job).state == "succeeded"
    assert sorted(job.images.values_list("position", flat=True)) == list(range(6))


def test_a_cancellation_is_heard_between_denoiser_steps(start, monkeypatch):
    job = start(num_images=1, parameters=quick(num_inference_steps=8))
    monkeypatch.setattr(engine, "_SECONDS_BETWEEN_REPORTS", 0.0)
    draw = production.draw_positions

    def draw_and_cancel(models, call, positions, *, on_step):
        def step(done, total):
            if done == 3:
                GenerationJob.objects.filter(pk=job.pk).update(cancel_requested=True)
            assert done <= 3, "it went on after the cancellation"
            on_step(done, total)

        return draw(models, call, positions, on_step=step)

    monkeypatch.setattr(production, "draw_positions", draw_and_cancel)
    assert run(job).state == "cancelled"
    assert not job.images.exists()


def test_a_full_disk_leaves_nothing_half_written(start, artifact_root, monkeypatch):
    job = start()
    write, calls = engine.write_bytes, []

    def full(path, content):
        calls.append(path)
        if len(calls) == 4:  # the second image of the second batch
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_bytes", full)
        assert run(job).state == "failed"
    assert "No space left on device" in job.error and "retry" in job.error
    assert job.images.count() == 2, "the first batch is safe"
    files = [path for path in (artifact_root / "images").rglob("*") if path.is_file()]
    assert sorted(files) == sorted(
        path for image in job.images.all() for path in (image.path, image.path.with_suffix(".json"))
    )
    retry_generation(job=job)
    assert run(job).state == "succeeded"
    assert job.images.count() == 4


def test_a_worker_that_lost_its_job_stores_nothing_more(start, artifact_root):
    job = start()
    draw = engine.draw_baseline

    def claimed_elsewhere(*args, **kwargs):
        for batch in draw(*args, **kwargs):
            GenerationJob.objects.filter(pk=job.pk).update(attempt=9)
            yield batch

    engine.draw_baseline, restore = claimed_elsewhere, draw
    try:
        run_generation_job(job.pk)
    finally:
        engine.draw_baseline = restore
    assert not GeneratedImage.objects.exists()
    assert not [path for path in (artifact_root / "images").rglob("*") if path.is_file()]


# --- the same image again ---


def test_the_same_row_gives_the_same_pixels(start, tiny_release):
    baseline = run(start(parameters=quick(batch_size=3)))
    filtered = run(start(mode="rlhf", parameters=quick(quality_threshold=0.0)))
    for image in (*baseline.images.all(), *filtered.images.all()):
        again = engine.regenerate(image)
        assert again.tobytes() == Image.open(image.path).tobytes()
        png = png_bytes(again, prompt=image.prompt.text, seed=image.seed, is_phantom=image.is_phantom)
        assert hashlib.sha256(png).hexdigest() == image.sha256


def test_an_interval_is_recorded_and_the_row_still_gives_the_same_pixels(start):
    parameters = quick(num_inference_steps=8, guidance_interval=(0.25, 0.75))
    image = run(start(parameters=parameters)).images.first()
    assert image.parameters["guidance_interval"] == [0.25, 0.75]
    facts = json.loads(image.path.with_suffix(".json").read_text())
    assert facts["unet_evaluations"] == 8 + 4, "four of eight steps are guided, and count twice"
    assert engine.regenerate(image).tobytes() == Image.open(image.path).tobytes()
    del image.parameters["guidance_interval"]  # a row of before there were intervals: guided all the time
    whole = run(start(parameters=quick(num_inference_steps=8))).images.first()
    assert json.loads(whole.path.with_suffix(".json").read_text())["unet_evaluations"] == 16
    assert engine.regenerate(image).tobytes() == Image.open(whole.path).tobytes()
    assert Image.open(image.path).tobytes() != Image.open(whole.path).tobytes()


def test_bfloat16_is_recorded_and_drawn_again_bit_for_bit(start):
    image = run(start(num_images=1, parameters=quick(precision="bfloat16"))).images.first()
    assert image.parameters["precision"] == "bfloat16"
    assert engine.regenerate(image).tobytes() == Image.open(image.path).tobytes()


def test_what_did_not_fit_into_the_encoder_is_recorded(start):
    prompt = "Chest CT: " + "effusion " * 40 + "and a final remark"
    image = run(start(num_images=1, prompts=[prompt])).images.get()
    facts = json.loads(image.path.with_suffix(".json").read_text())
    assert facts["prompt_cut"] == image.parameters["prompt_cut"]
    assert facts["prompt_cut"].endswith("and a final remark")
    fits = run(start(num_images=1)).images.first()
    assert json.loads(fits.path.with_suffix(".json").read_text())["prompt_cut"] == ""
    assert "prompt_cut" not in fits.parameters


def test_a_warm_worker_encodes_a_prompt_once_for_all_its_batches(start, monkeypatch):
    from generation.diffusion.pipeline import MedSynPipeline

    engine._loaded.clear()
    texts, encode = [], MedSynPipeline.encode_text
    monkeypatch.setattr(MedSynPipeline, "encode_text", lambda self, given: texts.extend(given) or encode(self, given))
    for _ in range(2):
        run(start(num_images=4))
    assert sorted(texts) == sorted(["", *PROMPTS])


def test_other_weights_do_not_pass_for_the_old_ones(start, tiny_files, tmp_path):
    from tests.tiny_models import build_tiny_pipeline

    folder = tmp_path / "model"
    shutil.copytree(tiny_files["pipeline_folder"], folder)
    image = run(start(num_images=1, pretrained_model=str(folder))).images.first()
    build_tiny_pipeline(seed=5).save_pretrained(folder)
    with pytest.raises(JobError, match="has other weights now"):
        engine.regenerate(image)


# --- models ---


def test_a_model_that_is_not_there_is_an_error_and_never_another_model(start, tmp_path):
    job = run(start(pretrained_model=str(tmp_path / "nowhere")))
    assert job.state == "failed"
    assert "nowhere" in job.error and "embedded" in job.error
    assert not job.images.exists()


def test_a_damaged_release_is_not_used(start, tiny_release):
    job = start(mode="rlhf")
    (tiny_release.folder / "policy_checkpoint.safetensors").write_bytes(b"broken")
    assert run(job).state == "failed"
    assert "policy_checkpoint.safetensors is changed" in job.error


def test_a_policy_of_another_text_encoder_is_refused(start, tiny_files, tmp_path):
    from generation.services import activate_release, publish_release
    from tests.tiny_models import build_tiny_pipeline

    build_tiny_pipeline(seed=5).save_pretrained(tmp_path / "other")
    pieces = tiny_files | {"pipeline_folder": tmp_path / "other"}
    release = publish_release(**pieces, quality_threshold=0.5, name="mixed", manifest={}, is_simulated=False)
    activate_release(release=release)
    assert "another text encoder" in run(start(mode="rlhf")).error


def test_a_size_the_model_was_not_built_for_fails_with_the_reason(start, tmp_path):
    from generation.diffusion.presets import TEST, build_pipeline

    deeper = dataclasses.replace(TEST, unet_channels=(8, 8, 8), unet_attends=(False, True, True))
    build_pipeline(deeper, captions_for_vocabulary=PROMPTS, seed=0).save_pretrained(tmp_path / "deeper")
    job = run(start(pretrained_model=str(tmp_path / "deeper"), parameters=quick(height=40, width=40)))
    assert job.state == "failed"
    assert "40x40 does not fit this model" in job.error


def test_a_warm_worker_loads_a_model_once_and_keeps_two(start, tiny_files, tmp_path, monkeypatch):
    loads = []

    def counted(choice):
        loads.append(choice.source.pretrained_model)
        return production.load_models(choice)

    monkeypatch.setattr(engine, "load_models", counted)
    engine._loaded.clear()
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        shutil.copytree(tiny_files["pipeline_folder"], folder)
    for folder in (folders[0], folders[0], folders[1], folders[0], folders[2], folders[0], folders[1]):
        assert run(start(num_images=1, pretrained_model=str(folder))).state == "succeeded"
    names = [folder.name for folder in folders]
    assert [path.rpartition("/")[2] for path in loads] == [names[0], names[1], names[2], names[1]]
    assert len(engine._loaded) == 2


def test_the_filter_judges_a_generator_in_bfloat16_too(start, tiny_release):
    """The policy knows its text encoder by its numbers on the disk, of which bfloat16 keeps fewer digits."""
    parameters = quick(precision="bfloat16", quality_threshold=0.0)
    job = run(start(mode="rlhf", num_images=1, release=tiny_release, parameters=parameters))
    assert job.state == "succeeded", job.error
    assert {image.parameters["precision"] for image in job.images.all()} == {"bfloat16"}
