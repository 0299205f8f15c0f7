"""The pages of generation: who may see them, what they show, what they refuse."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pydicom
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from PIL import Image

from generation.models import GeneratedImage, GenerationJob, Release
from generation.parameters import Parameters
from generation.views.jobs import GALLERY_PAGE, REJECTED_SHOWN
from ratings.models import Assignment, Rating
from tests.factories import GeneratedImageFactory, GenerationJobFactory, PromptFactory, StudyFactory
from tests.generation.small_releases import make_release

pytestmark = pytest.mark.django_db
PROMPT = "Chest X-ray: normal lung fields"
ACCEPTED = {"verdict": "accepted", "selector_score": 0.85, "policy_score": 0.92}
REJECTED = {"verdict": "rejected", "selector_score": 0.31, "policy_score": 0.72}
FORM = {
    "prompts": PROMPT,
    "mode": "baseline",
    "num_images": 2,
    "quality_threshold": 0.6,
    "seed": 11,
    "num_inference_steps": 12,
    "guidance_scale": 3,
    "scheduler": "dpm",
    "batch_size": 4,
    "max_attempts": 10,
    "num_candidates": 3,
}


@pytest.fixture
def admin(signed_in, alice):
    return signed_in(alice)


def body(response) -> bytes:
    """All that a response sends; read to its end, its file is closed."""
    return b"".join(response)


@pytest.fixture
def filtered_job(alice):
    """An rlhf job of one prompt: two accepted images, three rejected candidates."""
    release = make_release("first")
    prompt = PromptFactory(text=PROMPT)
    parameters = Parameters(max_attempts=2, num_candidates=2).as_dict()
    job = GenerationJobFactory(mode="rlhf", num_images=2, seed=100, release=release, parameters=parameters)
    job.job_prompts.create(prompt=prompt, position=0)
    for position, scores in ((0, REJECTED), (1, REJECTED), (2, ACCEPTED), (4, REJECTED), (5, ACCEPTED)):
        GeneratedImageFactory(job=job, prompt=prompt, release=release, position=position, **scores)
    GenerationJob.objects.filter(pk=job.pk).update(state="succeeded", progress_done=2, progress_total=2)
    return GenerationJob.objects.get(pk=job.pk)


# --- the form ---


def test_the_form_starts_a_job(admin, enqueued):
    response = admin.post("/generate/", FORM | {"prompts": f"{PROMPT}\n\nFundus: mild drusen"})
    job = GenerationJob.objects.get()
    assert response.url == job.get_absolute_url()
    assert [one.prompt.text for one in job.job_prompts.all()] == [PROMPT, "Fundus: mild drusen"]
    assert (job.seed, job.num_images, job.parameters["num_inference_steps"]) == (11, 2, 12)
    assert (job.parameters["height"], job.parameters["negative_prompt"]) == (None, "")
    assert job.parameters["guidance_interval"] == [0, 1]


def test_the_guided_part_of_the_run_can_be_chosen_and_comes_back(admin, enqueued):
    admin.post("/generate/", FORM | {"guidance_start": 0.2, "guidance_end": 0.8})
    job = GenerationJob.objects.get()
    assert job.parameters["guidance_interval"] == [0.2, 0.8]
    form = admin.get(f"/generate/?again={job.pk}").context["form"]
    assert (form["guidance_start"].value(), form["guidance_end"].value()) == (0.2, 0.8)
    refused = admin.post("/generate/", FORM | {"guidance_start": 0.8, "guidance_end": 0.2})
    assert "must end after it starts" in str(refused.context["form"].errors["guidance_end"])


def test_an_images_page_says_which_part_was_guided_and_what_was_not_read(admin, filtered_job):
    image = filtered_job.images.first()
    page = admin.get(image.get_absolute_url()).content.decode()
    assert "of the run" not in page and "Cut off" not in page
    image.parameters |= {"guidance_interval": [0.25, 0.8], "prompt_cut": "and <much> more", "guidance_scale": 3}
    image.save()
    page = admin.get(image.get_absolute_url()).content.decode()
    assert "guidance 3 from 0.25 to 0.8 of the run" in page
    assert "Cut off: <q>and &lt;much&gt; more</q>" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "normal lungs"}, "has no prefix"),
        ({"prompts": ""}, "This field is required"),
        ({"num_images": 0}, "greater than or equal to 1"),
        ({"seed": "x"}, "whole number"),
        ({"num_inference_steps": 5000}, "less than or equal to 1000"),
        ({"height": 100}, "not a multiple of 8"),
        ({"mode": "rlhf"}, "none is active"),
    ],
)
def test_a_refused_form_says_why_and_keeps_what_was_typed(admin, changes, message):
    response = admin.post("/generate/", FORM | {"negative_prompt": "grid artefacts"} | changes)
    page = response.content.decode()
    assert response.status_code == 422
    assert message in page
    assert "grid artefacts" in page
    assert not GenerationJob.objects.exists()


def test_the_form_starts_from_the_active_release(admin):
    make_release("first", active=True, threshold=0.72)
    form = admin.get("/generate/").context["form"]
    assert (form["mode"].value(), form["quality_threshold"].value()) == ("rlhf", 0.72)


def test_the_form_starts_from_the_sampling_its_model_recommends(admin):
    release = make_release("first", active=True)
    index = release.folder / "pipeline" / "model_index.json"
    index.parent.mkdir()
    advice = {"recommended_steps": 9, "recommended_guidance": None, "recommended_guidance_interval": [0.3, 1]}
    index.write_text(json.dumps(advice))
    form = admin.get("/generate/").context["form"]
    assert (form["guidance_start"].value(), form["guidance_end"].value()) == (0.3, 1)
    assert (form["num_inference_steps"].value(), form["guidance_scale"].value()) == (9, 7.5)


def test_the_form_takes_over_an_images_settings(admin, filtered_job):
    image = filtered_job.images.accepted().first()
    form = admin.get("/generate/", {"like": str(image.public_id)}).context["form"]
    assert (form["prompts"].value(), form["seed"].value(), form["max_attempts"].value()) == (PROMPT, 102, 2)
    assert form["num_images"].value() == 1
    assert admin.get("/generate/", {"like": "nonsense"}).status_code == 404
    again = admin.get("/generate/", {"again": filtered_job.pk}).context["form"]
    values = [again[name].value() for name in ("prompts", "mode", "seed", "num_images")]
    assert values == [PROMPT, "rlhf", 100, 2]


def test_every_example_is_a_prompt(admin):
    from generation.forms import examples
    from medsyn.modalities import KINDS, parse_prompt

    assert [kind for kind, _ in examples()] == [kind.prefix for kind in KINDS]
    for _, texts in examples():
        assert all(parse_prompt(text).text == text for text, _ in texts)


# --- a job's page ---


def test_accepted_images_come_first_and_rejected_ones_are_folded(admin, filtered_job):
    page = admin.get(filtered_job.get_absolute_url()).content.decode()
    served, rejected = page.split('<details class="fold" data-fold="rejected">')
    assert served.count(">Accepted</span>") == 2
    assert ">Rejected</span>" not in served
    assert rejected.count("badge rejected") == 3
    assert "Rejected candidates: 3" in page
    assert "0.85" in served and "0.92" in served


def test_a_job_that_found_fewer_says_so(admin, filtered_job):
    filtered_job.images.filter(position=5).delete()
    for position in (5, 6, 7):
        GeneratedImageFactory(job=filtered_job, prompt=filtered_job.prompts.get(), position=position, **REJECTED)
    page = admin.get(filtered_job.get_absolute_url()).content.decode()
    assert "Fewer images than asked for" in page
    assert "1 of 2 images found no candidate that passes" in page


def test_phantoms_are_called_phantoms(admin, filtered_job):
    url = filtered_job.get_absolute_url()
    assert "not medical images" not in admin.get(url).content.decode()
    filtered_job.images.update(is_phantom=True)
    assert "Procedural phantoms, not medical images" in admin.get(url).content.decode()
    image = filtered_job.images.first()
    assert "not a medical image" in admin.get(image.get_absolute_url()).content.decode()
    assert "not medical images" in admin.get("/images/").content.decode()


def test_a_gallery_of_several_prompts_says_which_image_shows_what(admin, filtered_job):
    gallery = reverse("generation:job-gallery", args=[filtered_job.pk])
    shown = f'<span class="small prompt-two-lines">{filtered_job.images.served().first().prompt.text}</span>'
    assert shown not in admin.get(gallery).content.decode()  # one prompt: it is the title
    filtered_job.job_prompts.create(prompt=PromptFactory(text="OCT: drusen"), position=1)
    assert shown in admin.get(gallery).content.decode()


def test_the_gallery_alone_and_the_progress_are_never_cached(admin, filtered_job):
    gallery = admin.get(reverse("generation:job-gallery", args=[filtered_job.pk]))
    assert "<html" not in gallery.content.decode()
    assert 'data-drawn="5"' in gallery.content.decode()
    progress = admin.get(reverse("generation:job-progress", args=[filtered_job.pk]))
    assert progress.json()["state"] == "succeeded"
    assert progress.json()["total"] == 2
    assert gallery["Cache-Control"] == progress["Cache-Control"] == "no-store"


@pytest.fixture
def many(filtered_job):
    """``many(n)``: so many accepted and as many rejected candidates more, rows alone."""

    def add(number: int) -> None:
        first = 100 + 2 * filtered_job.images.count()
        prompt = filtered_job.prompts.get()
        last = first + 2 * number
        GenerationJob.objects.filter(pk=filtered_job.pk).update(num_images=last, progress_total=last)
        common = {"job": filtered_job, "prompt": prompt, "file": "x.png", "sha256": "0" * 64, "width": 8, "height": 8}
        GeneratedImage.objects.bulk_create(
            GeneratedImage(seed=k, position=k, **common, **(ACCEPTED if k % 2 else REJECTED))
            for k in range(first, first + 2 * number)
        )

    return add


def test_a_large_gallery_has_pages_and_asks_as_often_as_a_small_one(admin, filtered_job, many):
    url = filtered_job.get_absolute_url()
    many(5)
    with CaptureQueriesContext(connection) as few:
        admin.get(url)
    many(500)
    with CaptureQueriesContext(connection) as lots:
        page = admin.get(url).content.decode()
    assert len(lots) == len(few)
    served, rejected = page.split('data-fold="rejected"')
    assert served.count("image-card-body") == GALLERY_PAGE
    assert rejected.count("image-card-body") == REJECTED_SHOWN
    assert page.count('loading="lazy"') == GALLERY_PAGE + REJECTED_SHOWN
    second = admin.get(url, {"page": 2}).content.decode()
    assert f'data-url="{reverse("generation:job-gallery", args=[filtered_job.pk])}?page=2"' in second
    assert f"{GALLERY_PAGE + 1}–{2 * GALLERY_PAGE} of" in second
    partial = admin.get(reverse("generation:job-gallery", args=[filtered_job.pk]), {"page": 2}).content.decode()
    assert 'rel="next" href="?page=3"' in second and 'rel="next" href="?page=3"' in partial


def test_attempts_are_shown_image_by_image(admin, filtered_job):
    spent = {"unet_evaluations": 130, "candidates": 6, "stopped": 1, "dropped": 0, "accepted": 2}
    GenerationJob.objects.update(spent=spent | {"places": {"0": [70, 3, 0, 0, 1], "1": [60, 3, 1, 0, 1]}})
    response = admin.get(filtered_job.get_absolute_url())
    figures = response.context["figures"]
    assert (figures.judged, figures.accepted, figures.stopped, figures.num_places) == (5, 2, 1, 2)
    assert (figures.attempts, figures.per_accepted) == ([2, 2], 65)
    assert [(line.candidates, line.stopped, line.best, line.state) for line in figures.places] == [
        (3, 0, 0.85, "filled"),
        (3, 1, 0.85, "filled"),
    ]
    page = response.content.decode()
    assert "UNet evaluations per accepted image" in page and "65.0" in page and "Stopped early" in page


def test_a_place_that_found_nothing_is_called_so(admin, filtered_job):
    filtered_job.images.filter(position=5).delete()
    for position in (5, 6, 7):
        GeneratedImageFactory(job=filtered_job, prompt=filtered_job.prompts.get(), position=position, **REJECTED)
    response = admin.get(filtered_job.get_absolute_url())
    assert [line.state for line in response.context["figures"].places] == ["not found", "filled"]
    page = response.content.decode()
    assert "not found within 2 attempts" in page and "Not found" in page


def test_the_sliders_scores_name_the_place_of_each_candidate(admin, filtered_job):
    answer = admin.get(reverse("generation:job-scores", args=[filtered_job.pk]))
    assert answer["Cache-Control"] == "no-store"
    assert answer.json() == {
        "threshold": 0.6,
        "places": 2,
        "candidates": [[0, 0.31, 0.72], [0, 0.31, 0.72], [0, 0.85, 0.92], [1, 0.31, 0.72], [1, 0.85, 0.92]],
    }
    page = admin.get(filtered_job.get_absolute_url()).content.decode()
    assert 'data-selector="0.85" data-policy="0.92"' in page and "threshold.js" in page
    plain = GenerationJobFactory()
    GeneratedImageFactory(job=plain, position=0)
    assert "threshold.js" not in admin.get(plain.get_absolute_url()).content.decode(), "nothing was judged"


def test_a_threshold_that_was_tried_goes_into_a_new_job(admin, filtered_job):
    form = admin.get("/generate/", {"again": filtered_job.pk, "threshold": "0.45"}).context["form"]
    assert (form["quality_threshold"].value(), form["seed"].value(), form["mode"].value()) == ("0.45", 100, "rlhf")


def test_recent_jobs_are_counted_each_by_itself_newest_first(admin, filtered_job):
    newest = GenerationJobFactory(num_images=1, progress_total=2)
    for position, text in enumerate((PROMPT, "Fundus: mild drusen")):
        prompt = PromptFactory(text=text)
        newest.job_prompts.create(prompt=prompt, position=position)
        GeneratedImageFactory(job=newest, prompt=prompt, position=position)
    jobs = admin.get("/generate/").context["jobs"]
    assert [(job.pk, job.num_served, job.num_prompts) for job in jobs] == [(newest.pk, 2, 2), (filtered_job.pk, 2, 1)]


def test_cancelling_and_going_on(admin, enqueued):
    job = GenerationJobFactory()
    assert admin.post(reverse("generation:job-cancel", args=[job.pk])).url == job.get_absolute_url()
    job.refresh_from_db()
    assert job.state == "cancelled"
    again = admin.post(reverse("generation:job-cancel", args=[job.pk]), follow=True).content.decode()
    assert "had ended already" in again
    admin.post(reverse("generation:job-retry", args=[job.pk]))
    job.refresh_from_db()
    assert job.state == "queued"
    refused = admin.post(reverse("generation:job-retry", args=[job.pk]), follow=True).content.decode()
    assert "Only a failed or cancelled job" in refused


def test_the_archive_holds_what_is_served_and_nothing_rejected(admin, filtered_job):
    first = filtered_job.images.accepted().first()
    first.path.with_suffix(".json").write_text('{"seed": 102}')
    response = admin.get(reverse("generation:job-archive", args=[filtered_job.pk]))
    archive = zipfile.ZipFile(io.BytesIO(body(response)))
    assert archive.namelist() == [
        "Chest_X-ray_1_selector_0.85_policy_0.92.png",
        "Chest_X-ray_1_selector_0.85_policy_0.92.json",
        "Chest_X-ray_2_selector_0.85_policy_0.92.png",
        "manifest.json",
    ]
    assert archive.read(archive.namelist()[0]) == first.path.read_bytes()
    filtered_job.images.accepted().delete()
    assert admin.get(reverse("generation:job-archive", args=[filtered_job.pk])).status_code == 404


def test_the_archives_manifest_says_what_each_file_is(admin, filtered_job):
    url = reverse("generation:job-archive", args=[filtered_job.pk])
    archive = zipfile.ZipFile(io.BytesIO(body(admin.get(url))))
    manifest = json.loads(archive.read("manifest.json"))
    release = filtered_job.release
    assert manifest["release"] == {"name": "first", "digest": release.digest, "is_simulated": False}
    assert (manifest["prompts"], manifest["seed"], manifest["mode"]) == ([PROMPT], 100, "rlhf")
    assert manifest["parameters"]["quality_threshold"] == 0.6
    for entry, image in zip(manifest["images"], filtered_job.images.accepted(), strict=True):
        assert entry["sha256"] == hashlib.sha256(archive.read(entry["file"])).hexdigest() == image.sha256
        assert entry["png_sha256"] == image.sha256
        assert (entry["prompt"], entry["seed"], entry["release"]) == (PROMPT, image.seed, release.digest)
        assert entry["scores"] == {"selector": 0.85, "policy": 0.92}
        assert entry["parameters"] == image.parameters


def test_the_archive_as_dicom_holds_the_same_pixels(admin, filtered_job):
    url = reverse("generation:job-archive", args=[filtered_job.pk])
    assert admin.get(f"{url}?format=tiff").status_code == 404
    assert admin.get(f"{url}?format=dicom").status_code == 404, "without its sidecar an image cannot say what it is"
    for image in filtered_job.images.accepted():
        facts = {"synthetic": "Synthetic.", "prompt": PROMPT, "seed": image.seed, "model": "m", "weights_sha256": {}}
        image.path.with_suffix(".json").write_text(json.dumps(facts))
    archive = zipfile.ZipFile(io.BytesIO(body(admin.get(f"{url}?format=dicom"))))
    stem = "Chest_X-ray_1_selector_0.85_policy_0.92"
    assert archive.namelist()[:2] == [f"{stem}.dcm", f"{stem}.json"]
    dataset = pydicom.dcmread(io.BytesIO(archive.read(f"{stem}.dcm")))
    first = filtered_job.images.accepted().first()
    picture = Image.open(first.path).convert("RGB")
    pixels = dataset.pixel_array if dataset.SamplesPerPixel == 3 else np.stack([dataset.pixel_array] * 3, axis=-1)
    assert np.array_equal(pixels, np.asarray(picture))
    assert json.loads(archive.read(f"{stem}.json"))["seed"] == first.seed
    entry = json.loads(archive.read("manifest.json"))["images"][0]
    assert entry["sha256"] == hashlib.sha256(archive.read(f"{stem}.dcm")).hexdigest()
    assert entry["png_sha256"] == first.sha256


def test_a_job_whose_attempts_are_spent_offers_no_retry(admin, filtered_job):
    GenerationJob.objects.update(state="failed", error="the disk was full")
    url = filtered_job.get_absolute_url()
    retry = reverse("generation:job-retry", args=[filtered_job.pk])
    assert retry not in admin.get(url).content.decode(), "both places are filled"
    filtered_job.images.filter(position=5).delete()
    assert retry in admin.get(url).content.decode()


# --- images ---


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", 6),
        ("verdict=accepted", 2),
        ("verdict=rejected", 3),
        ("kind=fundus", 1),
        ("kind=oct", 0),
        ("q=LUNG", 5),
        ("verdict=nonsense", 6),
        ("job=abc", 6),
    ],
)
def test_the_list_is_filtered(admin, filtered_job, query, expected):
    GeneratedImageFactory(prompt=PromptFactory(text="Fundus: mild drusen"))
    page = admin.get(f"/images/?{query}")
    assert page.context["page"].paginator.count == expected
    assert page.content.decode().count("image-card-body") == expected


def test_the_list_is_filtered_by_release_and_job_and_sorted(admin, filtered_job):
    other = GeneratedImageFactory(verdict="accepted", selector_score=0.99, policy_score=0.1)
    by_release = admin.get("/images/", {"release": filtered_job.release_id, "job": filtered_job.pk})
    assert by_release.context["page"].paginator.count == 5
    assert admin.get("/images/?sort=-selector").context["page"].object_list[0] == other
    assert admin.get("/images/?sort=created").context["page"].object_list[0] == filtered_job.images.first()


def test_an_images_page_shows_where_it_comes_from(admin, filtered_job, bob):
    image = filtered_job.images.get(position=2)
    study = StudyFactory(images=[image])
    assignment = Assignment.objects.create(study=study, reader=bob, image=image, position=0)
    Rating.objects.create(
        assignment=assignment, value=3, expert_level=2, protocol_version=1, submitted_at=timezone.now()
    )
    response = admin.get(image.get_absolute_url())
    page = response.content.decode()
    for fact in (PROMPT, image.sha256, image.weights_sha256, "first", ">102<", "0.85", "0.92"):
        assert fact in page, fact
    assert [attempt.position for attempt in response.context["attempts"]] == [0, 1, 2]
    assert response.context["ratings"] == {"Poor": 0, "Acceptable": 0, "Excellent": 1}
    assert response.context["neighbours"]["next"].position == 5


def test_an_imported_image_has_a_page_too(admin):
    page = admin.get(GeneratedImageFactory(imported=True).get_absolute_url())
    assert page.status_code == 200
    assert "Imported" in page.content.decode()


def test_the_file_is_served_privately_and_not_again_when_known(admin, filtered_job):
    image = filtered_job.images.first()
    url = reverse("generation:image-file", args=[image.public_id])
    response = admin.get(url)
    assert body(response) == image.path.read_bytes()
    assert (response["Content-Type"], "private" in response["Cache-Control"]) == ("image/png", True)
    assert admin.get(url, headers={"if-none-match": response["ETag"]}).status_code == 304
    download = admin.get(url, {"download": "1"})
    body(download)
    assert 'filename="Chest_X-ray_1_selector_0.31_policy_0.72.png"' in download["Content-Disposition"]
    image.path.unlink()
    assert admin.get(url).status_code == 404


# --- every page ---


def test_simulated_releases_are_marked_wherever_they_are_named(admin, filtered_job):
    Release.objects.update(is_simulated=True, is_active=True)
    image = filtered_job.images.first()
    for url in ("/releases/", "/generate/", filtered_job.get_absolute_url(), image.get_absolute_url()):
        assert "simulated ratings" in admin.get(url).content.decode(), url


def test_empty_lists_say_what_to_do_next(admin):
    for url, text in (("/images/", "No images yet"), ("/releases/", "No release yet"), ("/generate/", "No job yet")):
        assert text in admin.get(url).content.decode()


def test_no_page_has_inline_script_or_style(admin, filtered_job):
    image = filtered_job.images.first()
    for url in ("/generate/", filtered_job.get_absolute_url(), "/images/", image.get_absolute_url(), "/releases/"):
        page = admin.get(url).content.decode()
        assert "style=" not in page and "<style" not in page and "onclick" not in page
        assert page.count("<script") == page.count("<script src=") + page.count('<script type="module" src=')
