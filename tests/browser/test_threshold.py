"""The threshold slider of a job's page in a real browser: it counts and marks, and stores nothing."""

import pytest
from playwright.sync_api import expect

from generation.models import GeneratedImage, GenerationJob
from generation.parameters import Parameters
from tests.factories import GeneratedImageFactory, GenerationJobFactory, PromptFactory

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def job(db) -> GenerationJob:
    """Two places of four candidates: 0.3 and 0.7 for the first, 0.5 and 0.62 for the second; threshold 0.6."""
    parameters = Parameters(max_attempts=2, num_candidates=2, quality_threshold=0.6).as_dict()
    job = GenerationJobFactory(mode="rlhf", num_images=2, parameters=parameters)
    prompt = PromptFactory()
    job.job_prompts.create(prompt=prompt, position=0)
    for position, score in ((0, 0.3), (1, 0.7), (4, 0.5), (5, 0.62)):
        verdict = "accepted" if score >= 0.6 else "rejected"
        scores = {"selector_score": score, "policy_score": 0.9, "verdict": verdict}
        GeneratedImageFactory(job=job, prompt=prompt, position=position, **scores)
    GenerationJob.objects.filter(pk=job.pk).update(state="succeeded", progress_done=2, progress_total=2)
    return job


def test_the_slider_says_what_would_pass_and_stores_nothing(page, sign_in, alice, job):
    before = list(GeneratedImage.objects.values())
    sign_in(alice)
    page.goto(job.get_absolute_url())
    said, slider = page.locator("[data-said]"), page.get_by_label("Threshold to try")
    expect(said).to_have_text("2 of 4 candidates would pass (50 %); 2 of 2 images would be found.")
    slider.fill("0.65")
    expect(said).to_have_text("1 of 4 candidates would pass (25 %); 1 of 2 images would be found.")
    expect(page.locator(".is-accepted").nth(1)).to_contain_text("would not pass")
    slider.fill("0.5")
    expect(said).to_have_text("3 of 4 candidates would pass (75 %); 2 of 2 images would be found.")
    expect(page.locator(".is-accepted").nth(1)).not_to_contain_text("would not pass")
    page.get_by_text("Rejected candidates: 2").click()
    expect(page.locator(".is-rejected").first).to_contain_text("would pass")
    assert list(GeneratedImage.objects.values()) == before
    page.get_by_role("link", name="New job at 0.50").click()
    expect(page.get_by_label("Quality threshold")).to_have_value("0.5")


def test_images_that_arrive_leave_the_focus_where_it_is(page, sign_in, alice, job):
    sign_in(alice)
    page.goto(job.get_absolute_url())
    fold = page.locator("#gallery summary", has_text="Rejected candidates")
    fold.press("Enter")
    scores = {"selector_score": 0.2, "policy_score": 0.9, "verdict": "rejected"}
    GeneratedImageFactory(job=job, prompt=PromptFactory(), position=2, **scores)
    page.evaluate("document.dispatchEvent(new CustomEvent('progress:update'))")
    expect(fold).to_have_text("Rejected candidates: 3")
    expect(fold).to_be_focused()
    fold.press("Enter")
    expect(page.locator(".is-rejected").first).to_be_hidden()
