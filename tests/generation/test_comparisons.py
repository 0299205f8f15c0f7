"""Releases compared on the same prompts and seeds: jobs used again, one filter for both sides, figures."""

from collections import Counter

import numpy as np
import pytest
from django.urls import reverse
from scipy import stats

from generation.comparisons import (
    STANDARD_PROMPTS,
    cancel_comparison,
    judgements,
    ordered_pairs,
    retry_comparison,
    start_comparison,
)
from generation.diffusion.phantoms import all_captions
from generation.models import GenerationJob, ImageScore, ReleaseComparison
from generation.parameters import ParameterError, Parameters
from generation.services import start_generation
from generation.tasks import run_comparison, run_generation_job, sweep_generation_jobs
from medsyn.modalities import KINDS, parse_prompt
from tests.factories import GeneratedImageFactory, GenerationJobFactory, PromptFactory
from tests.generation.small_releases import make_release

pytestmark = pytest.mark.django_db
PROMPTS = ["Chest X-ray: cardiomegaly", "OCT: drusen under the retina"]
FAST = Parameters(num_inference_steps=2, guidance_scale=1, batch_size=2)


@pytest.fixture
def rung(monkeypatch, enqueued) -> list[int]:
    """The keys of comparisons handed to the broker, which does nothing with them."""
    keys: list[int] = []
    monkeypatch.setattr(run_comparison, "delay", keys.append)
    return keys


def begin(left, right, user, **changes) -> ReleaseComparison:
    call = {"prompts": PROMPTS, "num_images": 2, "seed": 7, "parameters": FAST}
    return start_comparison(left=left, right=right, user=user, **call | changes)


def scored_comparison(prompts: int, left: np.ndarray, right: np.ndarray, threshold: float = 0.5) -> ReleaseComparison:
    """A finished comparison of (prompts x images) selector scores; every policy score is 0.9."""
    release = make_release("first", threshold=threshold)
    each = left.size // prompts
    jobs = [GenerationJobFactory(release=release, num_images=each), GenerationJobFactory(num_images=each)]
    rows = [PromptFactory() for _ in range(prompts)]
    for job, scores in zip(jobs, (left, right), strict=True):
        for position, score in enumerate(scores.ravel()):
            prompt = rows[position // each]
            image = GeneratedImageFactory(job=job, position=position, prompt=prompt)
            ImageScore.objects.create(image=image, release=release, selector_score=score, policy_score=0.9)
    return ReleaseComparison.objects.create(left=jobs[0], right=jobs[1])


def test_the_standard_prompts_are_three_of_each_kind_and_canonical():
    kinds = [parse_prompt(text).kind.slug for text in STANDARD_PROMPTS]
    assert Counter(kinds) == {kind.slug: 3 for kind in KINDS}
    assert all(parse_prompt(text).text == text for text in STANDARD_PROMPTS)


def test_the_standard_prompts_are_what_the_generator_has_learnt():
    learnt = set(" ".join(all_captions()).lower().replace(",", " ").replace(":", " ").split())
    words = " ".join(STANDARD_PROMPTS).lower().replace(",", " ").replace(":", " ").split()
    assert set(words) <= learnt, set(words) - learnt


def test_both_sides_get_a_baseline_job_with_the_same_call(alice, rung, enqueued, django_capture_on_commit_callbacks):
    release = make_release("first", active=True)
    with django_capture_on_commit_callbacks(execute=True):
        comparison = begin(release, None, alice)
    left, right = comparison.sides
    assert (left.release, right.release) == (release, None), "medsyn-tiny, though a release is active"
    for job in comparison.sides:
        assert (job.mode, job.seed, job.num_images, job.created_by) == ("baseline", 7, 2, alice)
        assert list(job.job_prompts.values_list("prompt__text", flat=True)) == PROMPTS
    assert left.parameters == right.parameters
    assert (enqueued, rung) == ([left.pk, right.pk], [comparison.pk])


def test_jobs_and_comparisons_that_exist_are_used_again(alice, rung):
    first, second, third = (make_release(name) for name in ("first", "second", "third"))
    before = start_generation(
        prompts=PROMPTS, user=alice, num_images=2, seed=7, parameters=FAST, release=first, mode="baseline"
    )
    comparison = begin(first, second, alice, prompts=["cxr: cardiomegaly", PROMPTS[1]])
    assert comparison.left == before, "however the prompt is spelt"
    assert begin(first, second, alice) == comparison
    assert begin(first, third, alice).left == before
    for changes in ({"seed": 8}, {"num_images": 1}, {"prompts": PROMPTS[::-1]}, {"parameters": Parameters()}):
        assert begin(first, second, alice, **changes).left != before, changes
    GenerationJob.objects.filter(pk=before.pk).update(state="failed")
    assert begin(first, second, alice).left != before


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"prompts": ["drusen"]}, "prompts"), ({"num_images": 0}, "num_images"), ({"num_images": 1001}, "num_images")],
)
def test_what_cannot_be_compared_is_refused(alice, rung, changes, key):
    with pytest.raises(ParameterError) as refused:
        begin(make_release("first"), None, alice, **changes)
    assert refused.value.key == key
    with pytest.raises(ParameterError, match="compared with itself"):
        begin(None, None, alice)
    assert not ReleaseComparison.objects.exists()


def test_the_filter_of_the_release_judges_both_sides(alice, tiny_release, rung):
    comparison = begin(tiny_release, make_copy(tiny_release), alice)
    run_comparison(comparison.pk)
    comparison.refresh_from_db()
    assert comparison.state == "queued", "it waits for its jobs"
    for job in comparison.sides:
        run_generation_job(job.pk)
    for _ in range(2):  # delivered twice
        run_comparison(comparison.pk)
    comparison.refresh_from_db()
    assert (comparison.state, comparison.progress_done, comparison.error) == ("succeeded", 16, "")
    assert ImageScore.objects.count() == 16, "8 images, two filters"
    first = judgements(comparison)[0]
    assert first.judge == tiny_release
    # The same weights under another name: the same pixels, so the same scores, and no difference.
    assert [image.sha256 for image in comparison.left.images.all()] == [
        image.sha256 for image in comparison.right.images.all()
    ]
    assert all(one.mean == one.low == one.high == 0 for one in first.differences)


def make_copy(release):
    from generation.services import publish_release

    return publish_release(
        pipeline_folder=release.folder / "pipeline",
        selector_file=release.folder / "selector_checkpoint.safetensors",
        policy_file=release.folder / "policy_checkpoint.safetensors",
        quality_threshold=0.5,
        name="copy",
        manifest={},
        is_simulated=True,
    )


def test_scores_are_those_of_the_filter_itself(alice, tiny_release, rung):
    """An image scored afterwards gets what filtered generation gave it from the same seed."""
    filtered = start_generation(
        prompts=PROMPTS[:1],
        user=alice,
        num_images=2,
        seed=7,
        mode="rlhf",
        parameters=Parameters(
            num_inference_steps=2,
            guidance_scale=1,
            batch_size=2,
            quality_threshold=0,
            max_attempts=1,
            num_candidates=1,
        ),
    )
    run_generation_job(filtered.pk)
    comparison = begin(tiny_release, make_copy(tiny_release), alice, prompts=PROMPTS[:1])
    for job in comparison.sides:
        run_generation_job(job.pk)
    run_comparison(comparison.pk)
    expected = list(filtered.images.order_by("position").values_list("selector_score", "policy_score"))
    scores = ImageScore.objects.filter(image__job=comparison.left, release=tiny_release).order_by("image__position")
    assert np.allclose(list(scores.values_list("selector_score", "policy_score")), expected, atol=1e-6)


def test_a_comparison_whose_job_failed_says_so_and_goes_on_with_it(alice, tiny_release, rung, enqueued):
    comparison = begin(tiny_release, None, alice)
    GenerationJob.objects.filter(pk=comparison.right_id).update(state="failed", error="disk full")
    GenerationJob.objects.filter(pk=comparison.left_id).update(state="succeeded")
    run_comparison(comparison.pk)
    comparison.refresh_from_db()
    assert comparison.state == "failed"
    assert f"Generation {comparison.right_id} failed" in comparison.error
    retry_comparison(comparison=comparison)
    assert GenerationJob.objects.get(pk=comparison.right_id).state == "queued"
    assert ReleaseComparison.objects.get().state == "queued"
    with pytest.raises(ParameterError, match="Only a failed or cancelled"):
        retry_comparison(comparison=comparison)


def test_cancelling_leaves_jobs_that_another_comparison_waits_for(alice, rung):
    first, second, third = (make_release(name) for name in ("first", "second", "third"))
    one, two = begin(first, second, alice), begin(first, third, alice)
    cancel_comparison(comparison=one)
    states = {job.pk: job.state for job in GenerationJob.objects.all()}
    assert states == {one.left_id: "queued", one.right_id: "cancelled", two.right_id: "queued"}


def test_the_sweep_rings_for_comparisons_too(alice, rung):
    comparison = begin(make_release("first"), None, alice)
    sweep_generation_jobs()
    assert comparison.pk in rung


def test_the_interval_is_that_of_a_t_test_over_prompts():
    random = np.random.default_rng(3)
    left, right = random.uniform(0.1, 0.9, (6, 4)), random.uniform(0.1, 0.9, (6, 4))
    judgement = judgements(scored_comparison(6, left, right))[0]
    selector = judgement.differences[0]
    expected = stats.ttest_1samp((right - left).mean(axis=1), 0).confidence_interval(0.95)
    assert (selector.low, selector.high) == pytest.approx((expected.low, expected.high))
    assert selector.mean == pytest.approx((right - left).mean())
    passing = judgement.differences[2]
    assert passing.mean == pytest.approx((right >= 0.5).mean() - (left >= 0.5).mean())
    assert (judgement.left.passing, judgement.right.selector) == pytest.approx(((left >= 0.5).mean(), right.mean()))
    assert judgement.left.number == 24


def test_one_prompt_has_no_interval():
    judgement = judgements(scored_comparison(1, np.array([[0.2, 0.4]]), np.array([[0.6, 0.6]])))[0]
    one = judgement.differences[0]
    assert (one.mean, one.low, one.high) == (pytest.approx(0.3), None, None)


def test_pairs_can_be_ordered_by_how_far_the_right_one_is_ahead():
    comparison = scored_comparison(3, np.array([[0.2], [0.9], [0.5]]), np.array([[0.8], [0.3], [0.5]]))
    judgement = judgements(comparison)[0]
    orders = {}
    for order in ("", "behind", "ahead"):
        pairs = ordered_pairs(comparison, judgement, order)
        orders[order] = [pair.images[0].position for pair in pairs]
    assert orders == {"": [0, 1, 2], "behind": [1, 2, 0], "ahead": [0, 2, 1]}


# --- pages ---


@pytest.fixture
def admin(signed_in, alice):
    return signed_in(alice)


def test_the_form_starts_a_comparison_of_the_standard_prompts(admin, rung):
    active, other = make_release("first", active=True), make_release("second")
    form = admin.get("/releases/compare/").context["form"]
    assert (form["left"].value(), form["right"].value()) == (active.pk, other.pk)
    assert admin.get(f"/releases/compare/?right={active.pk}").context["form"]["right"].value() == str(active.pk)
    values = {name: form[name].value() for name in form.fields}
    response = admin.post("/releases/compare/", values)
    comparison = ReleaseComparison.objects.get()
    assert response.url == comparison.get_absolute_url()
    assert tuple(comparison.left.job_prompts.values_list("prompt__text", flat=True)) == STANDARD_PROMPTS
    assert "first" in admin.get("/releases/compare/").content.decode()


def test_the_form_refuses_a_release_against_itself_and_keeps_what_was_typed(admin, rung):
    release = make_release("first")
    values = {"left": release.pk, "right": release.pk, "prompts": PROMPTS[0], "num_images": 1, "seed": 4}
    page = admin.post("/releases/compare/", values | {"num_inference_steps": 3, "guidance_scale": 2})
    assert page.status_code == 422
    assert "compared with itself" in page.content.decode()
    assert PROMPTS[0] in page.content.decode()


def test_the_page_shows_pairs_scores_and_figures(admin):
    comparison = scored_comparison(2, np.array([[0.2], [0.4]]), np.array([[0.6], [0.7]]))
    ReleaseComparison.objects.update(state="succeeded")
    page = admin.get(comparison.get_absolute_url()).content.decode()
    assert page.count('class="pair"') == 2
    assert page.count("Would pass") == 2 and page.count("Would not pass") == 2
    for figure in ("0.300", "0.650", "+0.350", "0.000", "1.000", "+1.000", "medsyn-tiny"):
        assert figure in page, figure


def test_a_running_comparison_shows_how_far_it_is_and_can_be_cancelled(admin, alice, rung):
    comparison = begin(make_release("first"), None, alice)
    page = admin.get(comparison.get_absolute_url()).content.decode()
    assert page.count("data-progress data-url=") == 3
    progress = admin.get(reverse("generation:comparison-progress", args=[comparison.pk]))
    assert (progress.json()["state"], progress["Cache-Control"]) == ("queued", "no-store")
    admin.post(reverse("generation:comparison-cancel", args=[comparison.pk]))
    assert ReleaseComparison.objects.get().state == "cancelled"
    again = admin.post(reverse("generation:comparison-cancel", args=[comparison.pk]), follow=True)
    assert "had ended already" in again.content.decode()
    admin.post(reverse("generation:comparison-retry", args=[comparison.pk]))
    assert ReleaseComparison.objects.get().state == "queued"


def test_the_page_asks_as_often_for_many_pairs_as_for_few(admin, django_assert_max_num_queries):
    few = scored_comparison(2, np.full((2, 1), 0.5), np.full((2, 1), 0.6))
    with django_assert_max_num_queries(30) as seen:
        admin.get(few.get_absolute_url())
    prompt = PromptFactory()
    for job in few.sides:
        for position in range(10, 30):
            GeneratedImageFactory(job=job, position=position, prompt=prompt)
    with django_assert_max_num_queries(len(seen)):
        page = admin.get(few.get_absolute_url()).content.decode()
    assert page.count('class="pair"') == 22
