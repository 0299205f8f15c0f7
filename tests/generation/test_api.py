"""The API of generation: closed to readers, and it does what the pages do."""

import json

import pytest

from generation.api_urls import urlpatterns
from generation.models import GenerationJob, ImageScore, Redrawing, Release, ReleaseComparison
from medsyn.artifacts import atomic_folder
from tests.factories import GeneratedImageFactory, GenerationJobFactory, PromptFactory

pytestmark = pytest.mark.django_db
PROMPT = "Chest X-ray: normal lung fields"


@pytest.fixture
def release(db) -> Release:
    release = Release(digest="a" * 64, name="first", quality_threshold=0.7)
    with atomic_folder(release.folder, digest=release.digest) as folder:
        (folder / "weights.safetensors").write_bytes(b"weights")
    release.manifest = json.loads((release.folder / "manifest.json").read_text())
    release.save()
    return release


@pytest.fixture
def image():
    return GeneratedImageFactory(
        prompt=PromptFactory(text=PROMPT), verdict="accepted", selector_score=0.8, policy_score=0.9
    )


def test_every_endpoint_is_closed_to_readers_and_strangers(api, alice, bob, release, image):
    known = {"pk": image.job_id, "public_id": image.public_id, "digest": release.digest}
    ReleaseComparison.objects.create(pk=image.job_id, left=image.job, right=GenerationJobFactory())
    # Certificates belong to tests/ratings, with all that they stand on.
    paths = [pattern.pattern._route for pattern in urlpatterns if not pattern.name.startswith("api-certificate")]
    assert len(paths) == 17
    for path in paths:
        url = "/api/" + path
        for name, value in known.items():
            url = url.replace(f"<uuid:{name}>", str(value)).replace(f"<str:{name}>", str(value))
        assert "<" not in url, url
        for method in ("get", "post"):
            assert getattr(api(), method)(url).status_code in (401, 403), url
            assert getattr(api(bob), method)(url).status_code == 403, url
        response = api(alice).get(url)
        b"".join(response)  # reads a file to its end, so that it is closed
        assert response.status_code in (200, 405), url


def test_a_job_is_created_listed_shown_cancelled_and_retried(api, alice, enqueued):
    client = api(alice)
    body = {
        "prompts": ["cxr: normal lung fields"],
        "num_images": 2,
        "seed": 5,
        "parameters": {"num_inference_steps": 9, "guidance_interval": [0.2, 0.8]},
    }
    created = client.post("/api/generation-jobs/", body, format="json")
    assert created.status_code == 201
    job = created.json()
    assert job["prompts"] == [PROMPT]
    assert (job["state"], job["seed"], job["parameters"]["num_inference_steps"]) == ("queued", 5, 9)
    assert job["parameters"]["guidance_interval"] == [0.2, 0.8]
    assert client.get("/api/generation-jobs/").json()["results"] == [job]
    assert client.get(f"/api/generation-jobs/{job['id']}/").json() == job
    assert client.post(f"/api/generation-jobs/{job['id']}/cancel/").json()["state"] == "cancelled"
    assert client.post(f"/api/generation-jobs/{job['id']}/retry/").json()["state"] == "queued"
    assert client.post(f"/api/generation-jobs/{job['id']}/retry/").status_code == 400


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"prompts": ["no prefix"]}, "prompts"),
        ({"prompts": []}, "prompts"),
        ({"num_images": 0}, "num_images"),
        ({"seed": -1}, "seed"),
        ({"mode": "best"}, "mode"),
        ({"mode": "rlhf"}, "mode"),
        ({"parameters": {"num_inference_steps": 0}}, "parameters"),
        ({"parameters": {"scheduler": "heun"}}, "parameters"),
        ({"parameters": {"guidance_interval": [0.5]}}, "parameters"),
        ({"parameters": {"guidance_interval": [0, 2]}}, "parameters"),
        ({"parameters": {"guidance_interval": [0.8, 0.2]}}, "guidance_interval"),
        ({"release": "f" * 64}, "release"),
    ],
)
def test_a_bad_request_names_the_key(api, alice, changes, key):
    response = api(alice).post("/api/generation-jobs/", {"prompts": [PROMPT]} | changes, format="json")
    assert response.status_code == 400
    assert list(response.json()) == [key]
    assert not GenerationJob.objects.exists()


def test_a_job_takes_the_threshold_of_its_release(api, alice, release, enqueued):
    client = api(alice)
    named = client.post(
        "/api/generation-jobs/",
        {"prompts": [PROMPT], "mode": "rlhf", "release": release.digest},
        format="json",
    ).json()
    assert (named["release"], named["parameters"]["quality_threshold"]) == (release.digest, 0.7)
    client.post(f"/api/releases/{release.digest}/activate/")
    body = {"prompts": [PROMPT], "mode": "rlhf", "parameters": {"quality_threshold": 0.5}}
    active = client.post("/api/generation-jobs/", body, format="json").json()
    assert (active["release"], active["parameters"]["quality_threshold"]) == (release.digest, 0.5)


def test_images_are_listed_by_filter_shown_and_served(api, alice, image):
    GeneratedImageFactory(job=GenerationJobFactory(), prompt=PromptFactory(text="Fundus: mild drusen"))
    client = api(alice)
    assert client.get("/api/images/").json()["count"] == 2
    for query in ("verdict=accepted", "kind=chest_xray", f"job={image.job_id}"):
        assert [one["id"] for one in client.get(f"/api/images/?{query}").json()["results"]] == [str(image.public_id)]
    assert client.get("/api/images/?job=x").status_code == 400
    shown = client.get(f"/api/images/{image.public_id}/").json()
    assert (shown["prompt"], shown["modality"], shown["selector_score"]) == (PROMPT, "X-Ray", 0.8)
    file = client.get(shown["file_url"].removeprefix("http://testserver"))
    assert b"".join(file.streaming_content) == image.path.read_bytes()
    image.path.unlink()
    assert client.get(f"/api/images/{image.public_id}/file/").status_code == 404


def test_a_release_is_listed_shown_and_activated(api, alice, release):
    client = api(alice)
    assert [one["digest"] for one in client.get("/api/releases/").json()["results"]] == [release.digest]
    assert client.post(f"/api/releases/{release.digest}/activate/").json()["is_active"] is True
    (release.folder / "weights.safetensors").write_bytes(b"changed")
    refused = client.post(f"/api/releases/{release.digest}/activate/")
    assert refused.status_code == 400
    assert "changed" in refused.json()["release"][0]


def test_an_activation_is_listed_with_the_person_and_rolled_back(api, alice, release):
    client = api(alice)
    second = another_release()
    assert client.post("/api/releases/roll-back/").status_code == 400
    for digest in (release.digest, second.digest):
        client.post(f"/api/releases/{digest}/activate/")
    assert client.post("/api/releases/roll-back/").json()["digest"] == release.digest
    history = client.get("/api/release-activations/").json()["results"]
    assert [(one["release"][0], one["activated_by"], one["is_rollback"]) for one in history] == [
        ("a", "alice", True),
        ("b", "alice", False),
        ("a", "alice", False),
    ]
    assert "nothing to roll back to" in client.post("/api/releases/roll-back/").json()["release"][0]


def another_release() -> Release:
    second = Release(digest="b" * 64, name="second", quality_threshold=0.5)
    with atomic_folder(second.folder, digest=second.digest) as folder:
        (folder / "weights.safetensors").write_bytes(b"other weights")
    second.manifest = json.loads((second.folder / "manifest.json").read_text())
    second.save()
    return second


@pytest.fixture
def rung(monkeypatch, enqueued) -> list[int]:
    """Neither comparisons nor redrawings reach the broker."""
    from generation import tasks

    keys: list[int] = []
    monkeypatch.setattr(tasks.run_comparison, "delay", keys.append)
    monkeypatch.setattr(tasks.run_redrawing, "delay", keys.append)
    return keys


def test_a_comparison_is_made_listed_shown_cancelled_and_taken_up(api, alice, release, rung):
    client = api(alice)
    body = {"left": None, "right": release.digest, "prompts": [PROMPT], "parameters": {"num_inference_steps": 6}}
    made = client.post("/api/release-comparisons/", body, format="json")
    assert made.status_code == 201
    row = made.json()
    assert (row["left_release"], row["right_release"], row["judgements"]) == (None, release.digest, [])
    assert client.post("/api/release-comparisons/", body, format="json").json()["id"] == row["id"]
    url = f"/api/release-comparisons/{row['id']}/"
    assert client.get("/api/release-comparisons/").json()["count"] == 1
    assert client.get(url).json() == row
    assert client.post(f"{url}cancel/").json()["state"] == "cancelled"
    assert client.post(f"{url}retry/").json()["state"] == "queued"
    assert client.post(f"{url}retry/").status_code == 400
    assert set(GenerationJob.objects.values_list("state", flat=True)) == {"queued"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"right": None}, "right"),
        ({"right": "f" * 64}, "right"),
        ({"prompts": ["lungs"]}, "prompts"),
        ({"num_images": 101}, "num_images"),
        ({"seed": -1}, "seed"),
        ({"parameters": {"guidance_interval": [0.8, 0.2]}}, "guidance_interval"),
    ],
)
def test_a_comparison_that_cannot_be_made_names_the_key(api, alice, release, changes, key):
    body = {"left": None, "right": release.digest, "prompts": [PROMPT]} | changes
    response = api(alice).post("/api/release-comparisons/", body, format="json")
    assert (response.status_code, list(response.json())) == (400, [key])
    assert not GenerationJob.objects.exists()


def test_the_figures_of_a_comparison_are_given(api, alice, release):
    jobs = [GenerationJobFactory(release=release), GenerationJobFactory()]
    for job, score in zip(jobs, (0.8, 0.5), strict=True):
        image = GeneratedImageFactory(job=job, position=0, prompt=PromptFactory(text=PROMPT), unet_evaluations=12)
        ImageScore.objects.create(image=image, release=release, selector_score=score, policy_score=0.9)
    row = ReleaseComparison.objects.create(left=jobs[0], right=jobs[1])
    judgement = api(alice).get(f"/api/release-comparisons/{row.pk}/").json()["judgements"][0]
    assert (judgement["judge"], judgement["threshold"]) == (release.digest, 0.7)
    assert judgement["left"] == {"number": 1, "selector": 0.8, "policy": 0.9, "passing": 1, "unet_evaluations": 12}
    assert [(one["mean"], one["low"]) for one in judgement["differences"]] == [
        (pytest.approx(-0.3), None),
        (0, None),
        (-1, None),
    ]


def test_an_image_is_drawn_again(api, alice, image, rung):
    client = api(alice)
    url = f"/api/images/{image.public_id}/redrawings/"
    made = client.post(url)
    assert (made.status_code, made.json()["state"], made.json()["is_same"]) == (201, "queued", False)
    assert client.post(url).json()["id"] == made.json()["id"]
    Redrawing.objects.update(state="succeeded", different_pixels=0, largest_difference=0, sha256=image.sha256)
    shown = client.get(url).json()
    assert [(one["is_same"], one["outcome"][:11]) for one in shown] == [(True, "Same pixels")]
    imported = GeneratedImageFactory(imported=True)
    assert client.post(f"/api/images/{imported.public_id}/redrawings/").json().keys() == {"image"}
