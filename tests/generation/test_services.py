"""Starting jobs, publishing releases, and which one is active."""

import errno
import json
import shutil
from pathlib import Path

import pytest

from generation import services, tasks
from generation.models import GenerationJob, Prompt, Release
from generation.parameters import ParameterError, Parameters
from generation.services import ReleaseError, activate_release, publish_release, retry_generation, start_generation
from medsyn.artifacts import atomic_folder, digest_of, file_sha256, folder_files, verify_folder

NORMAL = "Chest X-ray: normal lung fields"


@pytest.fixture
def enqueued(monkeypatch) -> list[int]:
    """The keys handed to the broker."""
    keys: list[int] = []
    monkeypatch.setattr(tasks.run_generation_job, "delay", keys.append)
    return keys


@pytest.fixture
def pieces(tmp_path) -> dict:
    """What training hands over: real files, small."""
    folder = tmp_path / "run"
    (folder / "pipeline" / "unet").mkdir(parents=True)
    (folder / "pipeline" / "model_index.json").write_text("{}")
    (folder / "pipeline" / "unet" / "weights.safetensors").write_bytes(b"unet")
    (folder / "selector.safetensors").write_bytes(b"selector")
    (folder / "policy.safetensors").write_bytes(b"policy")
    return {
        "pipeline_folder": folder / "pipeline",
        "selector_file": folder / "selector.safetensors",
        "policy_file": folder / "policy.safetensors",
        "quality_threshold": 0.6,
        "name": "first",
        "manifest": {"parents": [], "figures": {"auc": 0.81}},
        "is_simulated": True,
    }


def another(pieces: dict, text: bytes) -> dict:
    """The same pieces with another selector."""
    path = pieces["selector_file"].with_name(f"{text.decode()}.safetensors")
    path.write_bytes(text)
    return pieces | {"selector_file": path, "name": text.decode()}


# --- jobs ---


@pytest.mark.django_db(transaction=True)
def test_a_job_is_stored_with_resolved_values_and_enqueued_on_commit(alice, enqueued):
    job = start_generation(
        prompts=["chest x-RAY:  normal   lung fields", "Fundus: mild drusen"],
        user=alice,
        num_images=4,
        seed=7,
        parameters=Parameters(num_inference_steps=12),
    )
    assert enqueued == [job.pk]
    job.refresh_from_db()
    assert list(job.job_prompts.values_list("prompt__text", flat=True)) == [NORMAL, "Fundus: mild drusen"]
    assert (job.state, job.seed, job.num_images, job.progress_total) == ("queued", 7, 4, 8)
    assert Parameters.from_mapping(job.parameters) == Parameters(num_inference_steps=12)
    assert job.created_by == alice
    assert Prompt.objects.get(text=NORMAL).kind == "chest_xray"


@pytest.mark.django_db(transaction=True)
def test_a_job_that_was_rolled_back_is_not_enqueued(alice, enqueued):
    with pytest.raises(ParameterError):
        start_generation(prompts=[NORMAL], user=alice, mode="rlhf")
    assert enqueued == []
    assert not GenerationJob.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_broker_that_is_away_costs_no_job(alice, monkeypatch):
    def refuse(pk):
        raise ConnectionError("no broker")

    monkeypatch.setattr(tasks.run_generation_job, "delay", refuse)
    job = start_generation(prompts=[NORMAL], user=alice)
    assert GenerationJob.objects.get(pk=job.pk).state == "queued", "the sweep will ring again"


@pytest.mark.django_db
def test_two_jobs_without_a_seed_get_different_ones(alice):
    jobs = [start_generation(prompts=[NORMAL], user=alice) for _ in range(4)]
    assert len({job.seed for job in jobs}) == 4
    assert Prompt.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        ({"prompts": ["normal lung fields"]}, "prompts", "no prefix.*Chest X-ray:"),
        ({"prompts": ["Knee photo: normal"]}, "prompts", "unknown prefix"),
        ({"prompts": []}, "prompts", "0 prompts given"),
        ({"prompts": [NORMAL, "CXR: normal lung fields"]}, "prompts", "given twice"),
        ({"num_images": 0}, "num_images", "from 1 to 10000"),
        ({"num_images": True}, "num_images", "a whole number"),
        ({"seed": -1}, "seed", "from 0 to 4294967295"),
        ({"mode": "best"}, "mode", "not one of baseline, rlhf"),
        ({"mode": "rlhf"}, "mode", "none is active"),
    ],
)
def test_bad_input_names_the_argument_and_the_remedy(alice, values, key, message):
    with pytest.raises(ParameterError, match=message) as caught:
        start_generation(**{"prompts": [NORMAL], "user": alice} | values)
    assert caught.value.key == key
    assert not GenerationJob.objects.exists()


@pytest.mark.django_db
def test_the_model_is_settled_when_the_job_is_made(alice, pieces):
    release = activate_release(release=publish_release(**pieces | {"quality_threshold": 0.7}))
    job = start_generation(prompts=[NORMAL], user=alice, mode="rlhf")
    assert job.release == release
    assert job.parameters["quality_threshold"] == 0.7, "the release's own"
    named = start_generation(prompts=[NORMAL], user=alice, pretrained_model="models/other")
    assert (named.release, named.pretrained_model) == (None, "models/other")
    with pytest.raises(ParameterError, match="choose one or the other"):
        start_generation(prompts=[NORMAL], user=alice, release=release, pretrained_model="models/other")
    with pytest.raises(ParameterError, match="rlhf needs"):
        start_generation(prompts=[NORMAL], user=alice, mode="rlhf", pretrained_model="models/other")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("state", GenerationJob.State.values)
def test_only_what_failed_or_was_cancelled_is_retried(alice, enqueued, state):
    job = start_generation(prompts=[NORMAL], user=alice)
    GenerationJob.objects.filter(pk=job.pk).update(state=state, error="the disk was full")
    enqueued.clear()
    if state in ("failed", "cancelled"):
        retry_generation(job=job)
        job.refresh_from_db()
        assert (job.state, job.error, enqueued) == ("queued", "", [job.pk])
    else:
        with pytest.raises(ParameterError, match=state):
            retry_generation(job=job)
        assert enqueued == []


# --- parameters ---


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_inference_steps", 0, "from 1 to 1000"),
        ("num_inference_steps", 2.5, "a whole number"),
        ("num_inference_steps", "50", "out of range"),
        ("guidance_scale", -1, "from 0 to 50"),
        ("guidance_scale", float("nan"), "nan is out of range"),
        ("quality_threshold", 1.01, "from 0 to 1"),
        ("height", 100, "multiple of 8"),
        ("width", 4096, "from 16 to 2048"),
        ("batch_size", True, "whole number"),
        ("scheduler", "heun", "dpm, euler_a, euler, pndm, ddim"),
        ("precision", "int8", "float32, float16, bfloat16"),
        ("guidance_interval", (0.8, 0.2), "starts at 0.8 and ends at 0.2"),
        ("guidance_interval", (0.5, 0.5), "must end after it starts"),
        ("guidance_interval", (0, 1.5), "from 0 to 1"),
        ("guidance_interval", (0.5,), "pair of numbers"),
        ("guidance_interval", "01", "pair of numbers"),
        ("negative_prompt", None, "text"),
        ("num_inference_step", 5, "no such parameter.*num_inference_steps"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(key, value, message):
    with pytest.raises(ParameterError, match=message) as caught:
        Parameters.from_mapping({key: value})
    assert caught.value.key == key


def test_parameters_survive_json():
    parameters = Parameters(num_inference_steps=7, height=64, quality_threshold=0.25, guidance_interval=(0.2, 0.8))
    assert Parameters.from_mapping(json.loads(json.dumps(parameters.as_dict()))) == parameters


def test_a_row_of_before_there_was_an_interval_means_the_whole_run():
    old = {key: value for key, value in Parameters().as_dict().items() if key != "guidance_interval"}
    assert Parameters.from_mapping(old).guidance_interval == (0.0, 1.0)


# --- releases ---


@pytest.mark.django_db
def test_a_release_is_a_verified_copy_under_the_digest_of_what_it_holds(pieces, artifact_root):
    release = publish_release(**pieces)
    assert release.folder == artifact_root / "releases" / release.digest
    manifest = verify_folder(release.folder)
    assert manifest["files"] == folder_files(release.folder)
    assert release.digest == digest_of({"files": manifest["files"], "quality_threshold": 0.6})
    assert (release.folder / "pipeline" / "unet" / "weights.safetensors").read_bytes() == b"unet"
    assert release.selector_sha256 == file_sha256(pieces["selector_file"])
    assert release.policy_sha256 == file_sha256(pieces["policy_file"])
    assert release.manifest["figures"] == {"auc": 0.81}
    assert release.is_simulated
    assert not release.is_active
    assert pieces["pipeline_folder"].exists(), "what was published stays where it was"


@pytest.mark.django_db
def test_the_same_pieces_are_the_same_release_and_another_threshold_is_another(pieces):
    first = publish_release(**pieces)
    assert publish_release(**pieces | {"name": "again"}) == first
    assert publish_release(**pieces | {"quality_threshold": 0.7}) != first
    assert publish_release(**another(pieces, b"second")) != first


@pytest.mark.django_db
def test_a_damaged_release_is_mended_by_publishing_it_again(pieces):
    release = publish_release(**pieces)
    (release.folder / "policy_checkpoint.safetensors").write_bytes(b"broken")
    assert publish_release(**pieces) == release
    verify_folder(release.folder)


@pytest.mark.django_db
@pytest.mark.parametrize("missing", ["pipeline_folder", "selector_file", "policy_file"])
def test_a_missing_piece_is_named(pieces, missing, artifact_root):
    gone: Path = pieces[missing]
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(ReleaseError, match=str(gone)):
        publish_release(**pieces)
    assert not Release.objects.exists()
    assert not (artifact_root / "releases").exists()


@pytest.mark.django_db
def test_pieces_that_differ_from_their_manifest_are_refused(pieces, tmp_path):
    with atomic_folder(tmp_path / "epoch_1", step=1) as folder:
        (folder / "selector.safetensors").write_bytes(b"as trained")
    tampered = tmp_path / "epoch_1" / "selector.safetensors"
    assert publish_release(**pieces | {"selector_file": tampered})
    tampered.write_bytes(b"changed since")
    with pytest.raises(ReleaseError, match="not the file that its manifest.json describes"):
        publish_release(**pieces | {"selector_file": tampered})


@pytest.mark.django_db
def test_a_full_disk_leaves_no_half_release(pieces, artifact_root, monkeypatch):
    def full(source, target, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(services.shutil, "copyfile", full)
    with pytest.raises(ReleaseError, match="No space left.*publish again"):
        publish_release(**pieces)
    assert not Release.objects.exists()
    assert list((artifact_root / "releases").iterdir()) == []


@pytest.mark.django_db
def test_one_release_is_active_and_an_earlier_one_comes_back(pieces):
    first, second = publish_release(**pieces), publish_release(**another(pieces, b"second"))
    for release in (first, second, first, first):
        activate_release(release=release)
        assert list(Release.objects.filter(is_active=True)) == [release]
        assert services.active_release() == release
        assert release.activated_at is not None


@pytest.mark.django_db
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_release_is_not_activated(pieces, damage):
    first, second = publish_release(**pieces), publish_release(**another(pieces, b"second"))
    activate_release(release=first)
    file = second.folder / "pipeline" / "unet" / "weights.safetensors"
    file.write_bytes(b"other") if damage == "changed" else shutil.rmtree(second.folder)
    with pytest.raises(ReleaseError, match="cannot be served"):
        activate_release(release=second)
    assert services.active_release() == first
