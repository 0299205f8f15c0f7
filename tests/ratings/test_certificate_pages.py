"""Pages, API and command of certificates, from the draw to the revocation."""

import io
import re

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from generation.models import Certificate, GenerationJob
from ratings.certificate_page import power_plot
from ratings.models import CalibrationPlan
from ratings.services import describe_study
from ratings.tasks import watch_certificates
from tests.factories import GenerationJobFactory, StudyFactory, UserFactory
from tests.ratings.calibration_world import (
    PROMPT,
    draw_job,
    make_certificate,
    make_plan,
    make_release,
    plan_for,
    rate_all,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def drawn():
    return draw_job(make_release(is_active=True), number=680, auc=0.97)


@pytest.fixture
def plan(drawn):
    plan = plan_for(drawn, num_images=180)
    rate_all(plan, drawn.truth)
    return plan


@pytest.fixture
def admin(alice, signed_in):
    return signed_in(alice)


@pytest.fixture
def staff_api(alice, api):
    return api(alice)


@pytest.fixture
def certificate():
    return make_certificate(make_release(is_active=True))


def certify(*arguments, **options) -> str:
    out = io.StringIO()
    call_command("certify", *arguments, stdout=out, **options)
    return out.getvalue()


# --- pages ---


def test_the_empty_list_says_what_to_do(admin):
    page = admin.get("/certificates/").content.decode()
    assert "No certificate yet" in page and "threshold 0" in page


def test_a_calibration_is_planned_and_tested_on_its_pages(admin, drawn):
    reader = UserFactory(username="dora")
    form = {"name": "Set A", "release": drawn.job.release.pk, "jobs": [drawn.job.pk], "num_images": 180}
    answer = admin.post("/certificates/plan/", form | {"alpha": 0.1, "delta": 0.1, "readers": [reader.pk], "seed": 3})
    plan = CalibrationPlan.objects.get()
    assert answer.status_code == 302 and answer.url == f"/certificates/plans/{plan.public_id}/"
    page = admin.get(answer.url).content.decode()
    assert "180 are still to be rated" in page and "Fundus: 0 of 180 images" in page and ">Test<" not in page
    assert "Thresholds, Fundus" in page and "fundus" not in page  # people read names, no slugs
    assert "10\u00a0% of those served" in page and "<dt>Risk</dt><dd>10\u00a0%" in page
    rate_all(plan, drawn.truth)
    assert ">Test<" in admin.get(answer.url).content.decode()
    answer = admin.post(f"/certificates/plans/{plan.public_id}/test/")
    certificate = Certificate.objects.get()
    assert answer.url == f"/certificates/{certificate.pk}/"
    page = admin.get(answer.url).content.decode()
    assert certificate.sentence in page and certificate.hash in page and "Upper bound" in page
    listed = admin.get("/certificates/").content.decode()
    assert "Set A" in listed and "Fundus 180 / 180" in listed


def test_the_list_asks_as_much_however_long_it_is(admin, drawn, django_assert_num_queries):
    """A watched certificate, calibration sets half rated, closed, without readers; then all of it again, twice."""

    def more() -> None:
        plans = [
            plan_for(drawn, num_images=4),
            plan_for(drawn, num_images=5),
            plan_for(drawn, num_images=6, readers=[]),
        ]
        rate_all(plans[0], drawn.truth, number=3)
        describe_study(study=plans[1].study, is_open=False)
        make_plan(
            drawn.job.release, StudyFactory(), certificate=make_certificate(drawn.job.release), purpose="monitor"
        )

    more()
    with CaptureQueriesContext(connection) as first:
        page = admin.get("/certificates/").content.decode()
    assert [page.count(f"Fundus {told}") for told in ("3 / 4", "5 / 5", "0 / 6", "0 / 0")] == [1, 1, 1, 1]
    more()
    more()
    with django_assert_num_queries(len(first)):
        page = admin.get("/certificates/").content.decode()
    assert [page.count(f"Fundus {told}") for told in ("3 / 4", "5 / 5", "0 / 6", "0 / 0")] == [3, 3, 3, 3]


def test_a_plan_offers_the_jobs_that_can_be_calibrated_with(admin, drawn):
    GenerationJobFactory(mode="rlhf", state="succeeded", parameters={"quality_threshold": 0.6})
    UserFactory(username="edm", first_name="Edith", last_name="Moll")
    page = admin.get("/certificates/plan/").content.decode()
    offered = re.findall(r'name="jobs" value="(\d+)"', page)
    assert offered == [str(drawn.job.pk)]
    assert f"Job {drawn.job.pk}: 680 images, " in page and "No job fits yet" not in page
    assert "Edith Moll" in page and "edm" not in page
    GenerationJob.objects.update(state="failed")
    assert "No job fits yet" in admin.get("/certificates/plan/").content.decode()


def test_jobs_stand_under_their_releases(admin, drawn):
    """Also without JavaScript it is told which job is of which release."""
    other = draw_job(make_release("zweite"), number=2)
    later = draw_job(drawn.job.release, number=3, seed=1)
    page = admin.get("/certificates/plan/").content.decode()
    groups = re.findall(
        r'<fieldset class="group" data-release="(\d+)"><legend>(.*?)</legend>(.*?)</fieldset>', page, re.S
    )
    offered = [
        (int(release), name, re.findall(r'name="jobs" value="(\d+)"', boxes)) for release, name, boxes in groups
    ]
    assert offered == [
        (other.job.release.pk, str(other.job.release), [str(other.job.pk)]),
        (drawn.job.release.pk, str(drawn.job.release), [str(later.job.pk), str(drawn.job.pk)]),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"jobs": "seven"}, "is not the number of a job"),
        ({"jobs": "99999"}, "There is no job 99999"),
        ({"num_images": 9999}, "9999 are to be rated"),
        ({"alpha": 0.9}, "less than or equal to 0.5"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_what_was_typed(admin, drawn, changes, said):
    form = {"name": "Set A", "release": drawn.job.release.pk, "jobs": drawn.job.pk, "num_images": 180}
    answer = admin.post("/certificates/plan/", form | {"alpha": 0.1, "delta": 0.1} | changes)
    page = answer.content.decode()
    assert answer.status_code == 422 and said in page and 'value="Set A"' in page
    assert not CalibrationPlan.objects.exists()


def test_a_refusal_shows_how_many_ratings_it_takes(admin, certificate):
    refused = make_certificate(
        certificate.release,
        status="refused",
        threshold=None,
        served_share=None,
        poor_bound=None,
        refusal="Of the 66 images 20 are poor.",
        num_further=340,
    )
    page = admin.get(f"/certificates/{refused.pk}/").content.decode()
    assert "Nothing is promised." in page and "<polyline" in page
    assert "<strong>540</strong> rated images, 340 more" in page


def test_the_power_curve_lies_in_its_frame(certificate):
    plot = power_plot(certificate)
    points = [tuple(map(float, point.split(","))) for point in plot.points.split()]
    assert points[0][0] == 44 and points[-1][0] == 470 and all(12 <= y <= 150 for _, y in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    assert plot.wanted.text == "800" and plot.now.text == "200" and "reaches 80\u00a0% at 800" in plot.described


def test_a_certificate_is_revoked_on_its_page(admin, certificate):
    assert admin.post(f"/certificates/{certificate.pk}/revoke/", {"reason": ""}).status_code == 422
    admin.post(f"/certificates/{certificate.pk}/revoke/", {"reason": "Another camera"})
    page = admin.get(f"/certificates/{certificate.pk}/").content.decode()
    assert "Another camera" in page and "Revoked" in page and "Generate under it" not in page


# --- serving ---

FORM = {"mode": "rlhf", "num_images": 2, "quality_threshold": 0.6, "scheduler": "dpm", "guidance_scale": 7.5} | {
    "num_inference_steps": 30,
    "batch_size": 4,
    "max_attempts": 3,
    "num_candidates": 2,
}


def test_a_job_under_a_certificate_takes_its_threshold_and_sampling(admin, certificate):
    admin.post("/generate/", FORM | {"prompts": PROMPT, "certified": "on"})
    job = GenerationJob.objects.get()
    assert job.certified.certificate == certificate
    assert job.parameters["quality_threshold"] == 0.4 and job.parameters["num_inference_steps"] == 6
    assert job.parameters["max_attempts"] == 3 and job.parameters["batch_size"] == 4
    page = admin.get(job.get_absolute_url()).content.decode()
    assert 'class="badge certified"' in page and "at most 10\u00a0% of the Fundus images" in page
    certificate.revoked_at, certificate.revocation = job.created_at, "Drift."
    certificate.save()
    page = admin.get(job.get_absolute_url()).content.decode()
    assert "not certified" in page and "revoked since: Drift." in page


def test_an_ordinary_job_says_why_it_is_not_certified(admin, certificate):
    admin.post("/generate/", FORM | {"prompts": PROMPT})
    page = admin.get(GenerationJob.objects.get().get_absolute_url()).content.decode()
    assert "not certified" in page and "steps" in page and "the threshold is 0.6, the certified one 0.4" in page


def test_a_certificate_that_does_not_fit_is_refused_at_its_box(admin, certificate):
    answer = admin.post("/generate/", FORM | {"prompts": "Fundus: drusen", "certified": "on"})
    assert answer.status_code == 422 and "is outside the calibrated ones" in answer.content.decode()
    assert not GenerationJob.objects.exists()


def test_the_box_is_ticked_where_a_certificate_holds(admin, certificate):
    def ticked(query: str) -> bool:
        page = admin.get(f"/generate/?{query}").content.decode()
        return "checked" in re.search(r'<input[^>]*name="certified"[^>]*>', page)[0]

    assert ticked(f"certificate={certificate.pk}") and ticked(f"prompt={PROMPT}")
    assert not ticked("prompt=Fundus: drusen") and not ticked("")


def test_the_api_serves_and_lists(staff_api, certificate):
    body = {"prompts": [PROMPT], "mode": "rlhf", "certified": True}
    assert staff_api.post("/api/generation-jobs/", body, format="json").status_code == 201
    refused = staff_api.post("/api/generation-jobs/", body | {"mode": "baseline"}, format="json")
    assert refused.status_code == 400 and "only filtered images" in str(refused.json()["certified"])
    (row,) = staff_api.get("/api/certificates/?kind=fundus").json()["results"]
    assert row["is_valid"] and row["threshold"] == 0.4 and row["release"] == certificate.release.digest
    assert staff_api.get("/api/certificates/?release=none").json()["results"] == []
    assert staff_api.get("/api/certificates/?kind=lung").status_code == 400
    assert staff_api.delete(f"/api/certificates/{row['id']}/").status_code == 405


# --- the command ---


def test_from_draw_to_watch_by_command(drawn):
    UserFactory(username="dora")
    told = certify("--plan", "--study", "Set A", "--jobs", str(drawn.job.pk), "--images", "180", "--readers", "dora")
    assert "Fundus: 0 of 180 images rated" in told and "at least 22 images" in told
    plan = CalibrationPlan.objects.get()
    with pytest.raises(CommandError, match="180 are still to be rated"):
        certify("--study", "Set A")
    rate_all(plan, drawn.truth)
    assert "180 of 180" in certify("--study", "Set A", "--dry-run") and not Certificate.objects.exists()
    with pytest.raises(CommandError, match="alpha was settled before the ratings: 0.1, not 0.2"):
        certify("--study", "Set A", "--alpha", "0.2")
    told = certify("--study", "Set A", "--release", "first", "--alpha", "0.1")
    certificate = Certificate.objects.get()
    assert certificate.hash in told and "at most 15" in told
    with pytest.raises(CommandError, match="0 that were served"):
        certify("--watch", str(certificate.pk), "--study", "Watched", "--images", "5")
    assert certify("--observe") == "" and watch_certificates() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--study", "No such"], "is no calibration set"),
        (["--plan", "--observe"], "exclude each other"),
        (["--plan", "--study", "A", "--jobs", "999", "--images", "5"], "no generation job 999"),
        (["--plan", "--study", "A", "--images", "5"], "Give --jobs"),
        (["--watch", "77", "--study", "A", "--images", "5"], "There is no certificate 77"),
    ],
)
def test_commands_that_make_no_sense_say_so(arguments, said):
    with pytest.raises(CommandError, match=said):
        certify(*arguments)
