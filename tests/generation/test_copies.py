"""Copies of training images are blocked whatever drew them: stored for administrators, served to nobody."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from django.urls import reverse
from PIL import Image

from generation import engine
from generation.certification import frozen_pipeline
from generation.job_figures import scores_of
from generation.memorisation import FILE_NAME, MIN_HELD_OUT, MemoryIndex, nearest, small_pictures
from generation.models import GeneratedImage, GenerationJob, Release
from generation.parameters import Arithmetic, Parameters
from generation.production import as_tensor
from generation.services import activate_release, ledger_of, publish_release, start_generation
from generation.tasks import run_generation_job
from medsyn.artifacts import file_sha256
from tests.factories import StudyOwnerFactory

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

PROMPT = "Brain MRI: left mass, T2 weighted axial slice"
QUICK = Parameters(num_inference_steps=2, guidance_scale=3.0, batch_size=1, quality_threshold=0.0)
COPIED = 1  # position of the image that is made a training image


@pytest.fixture(autouse=True)
def cpu(settings, monkeypatch):
    settings.DEVICE = "cpu"
    settings.JOB_LEASE_SECONDS = 3600  # the heartbeat's own connection waits for this test's transaction
    monkeypatch.setattr(engine, "_SECONDS_BETWEEN_REPORTS", float("inf"))


def run(job: GenerationJob) -> GenerationJob:
    run_generation_job(job.pk)
    job.refresh_from_db()
    return job


def remember(pipeline: Path, training_image: Path, others: list[Path]) -> None:
    """Put an index of one training image into a pipeline's folder; the others' similarity is other patients'."""
    pictures = small_pictures(as_tensor([Image.open(training_image)]))
    similarity, _ = nearest(as_tensor([Image.open(path) for path in others]), pictures)
    assert similarity.max() < 0.999
    between = (1 + similarity.max()) / 2
    MemoryIndex(
        pictures=pictures,
        datasets=(str(training_image.parent),),
        names=(training_image.name,),
        sha256s=(file_sha256(training_image),),
        held_out_similarity=between.expand(MIN_HELD_OUT).contiguous(),
        held_out_kinds=("brain_mri",) * MIN_HELD_OUT,
    ).save(pipeline / FILE_NAME)


@pytest.fixture
def pipeline(tiny_files, alice, enqueued, tmp_path) -> Path:
    """The tiny pipeline, which was trained on the picture that it draws at position COPIED."""
    folder = shutil.copytree(tiny_files["pipeline_folder"], tmp_path / "pipeline")
    fresh = run(start_generation(prompts=[PROMPT], num_images=3, seed=40, user=alice, parameters=QUICK,
                                 pretrained_model=str(folder)))  # fmt: skip
    files = [image.path for image in fresh.images.order_by("position")]
    training_image = tmp_path / "data" / "patient_7.png"
    training_image.parent.mkdir()
    shutil.copy(files[COPIED], training_image)
    remember(folder, training_image, [path for number, path in enumerate(files) if number != COPIED])
    return folder


@pytest.fixture
def baseline(pipeline, alice) -> GenerationJob:
    return run(start_generation(prompts=[PROMPT], num_images=3, seed=40, user=alice, parameters=QUICK,
                                pretrained_model=str(pipeline)))  # fmt: skip


@pytest.fixture
def release(pipeline, tiny_files, artifact_root) -> Release:
    release = publish_release(
        **tiny_files | {"pipeline_folder": pipeline}, quality_threshold=0.0, name="r", manifest={}, is_simulated=True
    )
    activate_release(release=release)
    return release


def filter_candidates(release: Release, user, **changes) -> GenerationJob:
    """Three candidates for one place, of which the first is the copy."""
    parameters = Parameters(**QUICK.as_dict() | {"max_attempts": 1, "num_candidates": 3} | changes)
    job = start_generation(
        prompts=[PROMPT],
        num_images=1,
        seed=40 + COPIED,
        user=user,
        mode="rlhf",
        release=release,
        parameters=parameters,
    )
    return run(job)


@pytest.fixture
def filtered(release, alice) -> GenerationJob:
    """The filter would pass all three."""
    return filter_candidates(release, alice)


def test_a_copy_is_blocked_without_a_filter_too(baseline):
    verdicts = dict(baseline.images.values_list("position", "verdict"))
    assert verdicts == {0: "unfiltered", COPIED: "blocked", 2: "unfiltered"}
    copy = baseline.images.blocked().get()
    assert copy.resembles["name"] == "patient_7.png"
    assert copy.resembles["similarity"] > 0.99
    assert copy.resembles["p_value"] == pytest.approx(1 / (MIN_HELD_OUT + 1))
    assert set(baseline.images.served().values_list("position", flat=True)) == {0, 2}
    assert "patient_7" not in copy.path.with_suffix(".json").read_text()


def test_a_candidate_that_passes_but_copies_fills_no_place(filtered):
    first, second = filtered.images.order_by("position")
    assert (first.verdict, second.verdict) == ("blocked", "accepted")
    assert first.selector_score >= 0 and first.resembles["p_value"] < 0.01 < second.resembles["p_value"]
    ledger = ledger_of(filtered)
    assert ledger.filled_by(0).number == second.position
    assert [verdict.blocked for verdict in ledger.drawn_for(0)] == [True, False]
    assert len(scores_of(filtered)["candidates"]) == 1, "a copy passes at no threshold"


def test_a_copy_that_the_filter_rejects_is_withheld_too(release, alice):
    """Studies may take rejected candidates, and readers are shown them."""
    job = filter_candidates(release, alice, quality_threshold=1.0)
    copy, *others = job.images.order_by("position")
    assert copy.verdict == "blocked" and copy.resembles["name"] == "patient_7.png"
    assert [image.verdict for image in others] == ["rejected"] * 2
    assert ledger_of(job).explain_empty().count("1 blocked as copies") == 1


def test_the_page_shows_it_beside_the_training_image_to_administrators(baseline, client, alice):
    copy = baseline.images.blocked().get()
    client.force_login(alice)
    page = client.get(copy.get_absolute_url()).content.decode()
    assert "Blocked copy" in page and "patient_7.png" in page
    assert "Make it gold" not in page, "no study may have it"
    picture = client.get(reverse("generation:image-resembles", args=[copy.public_id]))
    assert picture.status_code == 200 and picture["Content-Type"] == "image/png"
    gallery = client.get(baseline.get_absolute_url()).content.decode()
    assert "Blocked as copies of training images: 1" in gallery


def test_a_training_image_that_is_another_file_now_is_not_shown(baseline, client, alice):
    copy = baseline.images.blocked().get()
    path = Path(copy.resembles["dataset"]) / "patient_7.png"
    Image.new("RGB", (32, 32)).save(path)
    client.force_login(alice)
    assert client.get(reverse("generation:image-resembles", args=[copy.public_id])).status_code == 404
    path.unlink()
    assert "its file is no longer where it was" in client.get(copy.get_absolute_url()).content.decode()


def test_a_row_that_names_a_file_outside_its_data_set_shows_nothing(baseline, client, alice):
    copy = baseline.images.blocked().get()
    secret = Path(copy.resembles["dataset"]).parent / "secret.png"
    Image.new("RGB", (32, 32)).save(secret)
    elsewhere = copy.resembles | {"name": "../secret.png", "sha256": file_sha256(secret)}
    GeneratedImage.objects.filter(pk=copy.pk).update(resembles=elsewhere)
    client.force_login(alice)
    assert client.get(reverse("generation:image-resembles", args=[copy.public_id])).status_code == 404


def test_for_study_owners_it_does_not_exist(baseline, client):
    owner = StudyOwnerFactory()
    copy, other = baseline.images.blocked().get(), baseline.images.served().first()
    client.force_login(owner)
    assert client.get(other.get_absolute_url()).status_code == 200
    for name in ("image", "image-file", "image-sidecar"):
        assert client.get(reverse(f"generation:{name}", args=[copy.public_id])).status_code == 404


def test_study_owners_do_not_see_it_among_the_candidates_of_a_place(filtered, client, alice):
    owner = StudyOwnerFactory()
    copy, accepted = filtered.images.order_by("position")
    client.force_login(owner)
    assert str(copy.public_id) not in client.get(accepted.get_absolute_url()).content.decode()
    client.force_login(alice)
    assert str(copy.public_id) in client.get(accepted.get_absolute_url()).content.decode()


def test_another_index_is_another_generator_to_a_certificate(pipeline, tiny_files, artifact_root):
    """Blocking changes what is served, so the index is frozen with the weights."""

    def frozen() -> str:
        files = tiny_files | {"pipeline_folder": pipeline}
        release = publish_release(**files, quality_threshold=0.0, name="r", manifest={}, is_simulated=True)
        call = {"parameters": {}, "prompts": [PROMPT], "arithmetic": Arithmetic("float32", "cpu")}
        return frozen_pipeline(release=release, **call)["generator"]

    index, before = MemoryIndex.load(pipeline / FILE_NAME), frozen()
    replace(index, held_out_similarity=index.held_out_similarity - 0.01).save(pipeline / FILE_NAME)
    other = frozen()
    (pipeline / FILE_NAME).unlink()
    assert len({before, other, frozen()}) == 3


def test_the_archive_leaves_it_out(baseline, client, alice):
    client.force_login(alice)
    response = client.get(reverse("generation:job-archive", args=[baseline.pk]))
    names = b"".join(response.streaming_content)
    copy = baseline.images.blocked().get()
    assert copy.sha256.encode() not in names


def test_a_damaged_index_stops_generation_instead_of_going_unchecked(pipeline, alice, enqueued):
    (pipeline / FILE_NAME).write_bytes(b"broken")
    job = run(start_generation(prompts=[PROMPT], num_images=1, seed=1, user=alice, parameters=QUICK,
                               pretrained_model=str(pipeline)))  # fmt: skip
    assert job.state == "failed" and "memory index" in job.error
