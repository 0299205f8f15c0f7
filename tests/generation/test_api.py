"""The API of generation: closed to readers, and it does what the pages do."""

import json

import pytest

from generation.api_urls import urlpatterns
from generation.models import GenerationJob, Release
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
    paths = [pattern.pattern._route for pattern in urlpatterns]
    assert len(paths) == 10
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
