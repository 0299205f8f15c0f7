"""The list of runs and the page of one: what they show while it waits, runs and has ended."""

import pytest
from django.urls import reverse
from django.utils import timezone

from tests.factories import GeneratedImageFactory, GenerationJobFactory, png_bytes
from tests.training.runs import Purpose, State, make_run
from training.models import TrainingRun
from training.run_directory import RunDirectory

pytestmark = pytest.mark.django_db
FIGURES = {
    "checkpoint": "best",
    "selector": {"auc_poor": {"value": 0.886, "low": 0.845, "high": 0.927}, "brier": {"value": 0.131, "low": None}},
    "pass_rate": 0.73,
    "counts": {"ratings": 640, "held_out": 36, "by_grade": {"1": 190}},
    "raters": [{"rater": "anne", "overlap": 12, "confusion": [[0.8, 0.1, 0.1], [0, 1, 0], [0, 0, 1]]}],
    "seconds": 812.4,
}


# --- the list ---


def test_an_empty_list_says_what_to_do_next(staff):
    page = staff.get("/training/").content.decode()
    assert "No runs yet" in page and reverse("training:new-rlhf") in page


def test_the_list_filters_sorts_and_pages(staff):
    for number in range(30):
        make_run(name=f"Selector {number:02}", state=State.FAILED if number % 3 else State.SUCCEEDED)
    make_run(Purpose.FINETUNE, name="Fundus", config={}, figures={"last_loss": 0.12})
    names = lambda query: [str(run) for run, *_ in staff.get("/training/" + query).context["rows"]]  # noqa: E731
    assert names("")[0] == "Fundus" and len(names("")) == 25 and len(names("?page=2")) == 6
    assert names("?purpose=finetune") == ["Fundus"]
    assert names("?state=succeeded&sort=name")[:2] == ["Selector 00", "Selector 03"]
    assert names("?q=selector+1&sort=-name")[0] == "Selector 19"
    assert "No run fits" in staff.get("/training/?q=nothing").content.decode()
    assert staff.get("/training/?purpose=nonsense").context["rows"] == []
    assert "0.1200" in staff.get("/training/?purpose=finetune").content.decode()


# --- one run ---


def test_a_running_run_shows_where_it_stands(staff):
    run = make_run(state=State.RUNNING, progress_done=3, progress_total=8, progress_unit="steps", is_simulated=True)
    directory = RunDirectory(run.path)
    directory.log(step=3, epoch=2, stage=1, policy_loss=0.5, device="cuda:0")
    (run.path / "log.txt").write_text("<b>epoch 2</b>\n")
    page = staff.get(run.get_absolute_url()).content.decode()
    for text in ("1 of 2", "2 of 100", "cuda:0", "simulated", "3 / 8 steps", "&lt;b&gt;epoch 2", 'data-poll="5"'):
        assert text in page
    assert reverse("training:cancel", args=[run.pk]) in page
    assert reverse("training:resume", args=[run.pk]) not in page
    assert 'id="release"' not in page

    answer = staff.get(reverse("training:progress", args=[run.pk])).json()
    assert (answer["state"], answer["done"], answer["total"], answer["epoch"]) == ("running", 3, 8, "2 of 100")
    assert answer["log"] == "<b>epoch 2</b>"


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("state", State)
def test_a_run_of_any_kind_and_state_has_a_page(staff, purpose, state):
    run = make_run(purpose, state=state, figures=FIGURES if purpose == Purpose.RLHF else {"steps": 5})
    assert staff.get(run.get_absolute_url()).status_code == 200


def test_a_finished_run_shows_its_figures(staff):
    run = make_run(state=State.SUCCEEDED, figures=FIGURES)
    page = staff.get(run.get_absolute_url()).content.decode()
    for text in (
        "0.886",
        "0.845 – 0.927",
        "73",
        "36 held-out images",
        "anne",
        "Ratings that say poor",
        "data-seconds",
    ):
        assert text in page


def full_report(image_sha256: str) -> dict:
    """As training.rlhf.train writes it, in small."""
    interval = {"value": 0.8, "low": 0.7, "high": 0.9}
    reliable = {"low": 0.6, "high": 0.7, "count": 8, "mean": 0.66, "observed": 0.75}
    passing = {"threshold": 0.6, "selector": 0.5, "both": 0.4, "poor_selector": 0.2, "poor_both": 0.1}
    wrong = {"prompt": "OCT: drusen", "grades": [1, 1], "selector": 0.9, "policy": 0.8, "why": "passes, rated poor"}
    histogram = {"edges": [0, 0.5, 1], "by_grade": {"1": [3, 1], "2": [2, 2], "3": [0, 9]}}
    return {
        **FIGURES,
        "human_ceiling_auc_poor": interval,
        "reliability": {"selector": [{**reliable, "observed_low": 0.4, "observed_high": 0.9}]},
        "histograms": {"selector": histogram, "policy": histogram},
        "pass_curve": [passing],
        "worst": [
            {**wrong, "image_path": "a.png", "image_sha256": image_sha256},
            {**wrong, "image_path": "b.png", "image_sha256": "0" * 64, "why": "fails, rated excellent"},
        ],
        "data": {"ratings_file_sha256": "ab" * 32, "ratings": 640, "raters": 3, "rater_source": "tidy file",
                 "labels": "own ratings and those of other images", "left_out": {"repeat": 12, "real": 0}},
        "raters": [{"rater": "R-1", "level": 2, "overlap": 12, "ratings": 40, "accuracy": 0.8, "kappa": 0.61,
                    "confusion": [[0.8, 0.1, 0.1], [0, 1, 0], [0, 0, 1]], "is_prior": True}],
        "timing": {"stage1": 30.0, "read": 10.0},
        "stopped_early": {"epoch": 31, "reason": "no better network for 20 epochs"},
    }  # fmt: skip


def test_a_full_report_is_drawn_with_its_numbers(staff):
    image = GeneratedImageFactory()
    run = make_run(state=State.SUCCEEDED, figures=full_report(image.sha256))
    answer = staff.get(run.get_absolute_url())
    page = answer.content.decode()
    for text in (
        "Reliability diagram", "Selector: score by grade", "40\u00a0% of the held-out images pass",
        "10\u00a0% of the ratings",
        "Passes, rated poor", "Not among the images here", "kappa 0.61", "their level lets expect", "ab" * 32,
        "12 repeat", "<dd>own ratings and those of other images</dd>",
        "Stopped early after epoch 31", "Reading the images", 'class="ceiling"',
    ):  # fmt: skip
        assert text in page, text
    assert page.count(image.get_absolute_url() + '"') == 1
    assert [each.image for each in answer.context["mistakes"]] == [image, None]
    assert "0 real" not in page
    assert [each.seconds for each in answer.context["timing"]] == [10, 30]


def test_the_report_is_downloaded_as_it_was_written(staff):
    run = make_run(state=State.SUCCEEDED, figures={"pass_rate": 0.5})
    url = reverse("training:report", args=[run.pk])
    assert staff.get(url).json() == {"pass_rate": 0.5}  # the row's, where the folder is gone
    (run.path / "report.json").write_bytes(b'{"pass_rate":   0.5}\n')
    answer = staff.get(url)
    assert answer.content == b'{"pass_rate":   0.5}\n'
    assert f'attachment; filename="run-{run.pk}-report.json"' in answer["Content-Disposition"]
    assert staff.get(reverse("training:report", args=[make_run().pk])).status_code == 404


def test_a_waiting_run_says_what_it_waits_for(staff):
    at_work = make_run(name="Long one", state=State.RUNNING, device="hall/cuda:0", heartbeat_at=timezone.now())
    first, second = make_run(), make_run()
    GenerationJobFactory(state=State.RUNNING)
    page = staff.get(second.get_absolute_url()).content.decode()
    assert (
        f"Place 2 of 2 in the queue. A device trains one run at a time; at work: run {at_work.pk} (Long one)" in page
    )
    assert "cuda:0 of hall" in page and "1 generation drawing" in page
    listed = staff.get("/training/").content.decode()
    assert "place 1" in listed and "place 2" in listed and "place 3" not in listed and "cuda:0 of hall" in listed
    assert staff.get(reverse("training:progress", args=[at_work.pk])).json()["queue"] == ""
    TrainingRun.objects.filter(pk=at_work.pk).update(state=State.SUCCEEDED)
    assert "takes the next one in a moment" in staff.get(first.get_absolute_url()).content.decode()
    TrainingRun.objects.filter(pk=first.pk).update(queued_at=timezone.now() - timezone.timedelta(hours=1))
    assert "no worker takes it" in staff.get(first.get_absolute_url()).content.decode()


def test_the_process_knows_best_how_long_it_takes(staff):
    run = make_run(state=State.RUNNING, progress_done=1, progress_total=2, started_at=timezone.now())
    RunDirectory(run.path).log(step=1, epoch=1, seconds_left=754.6, device="cpu")
    TrainingRun.objects.filter(pk=run.pk).update(device="hall/cpu")
    answer = staff.get(reverse("training:progress", args=[run.pk])).json()
    assert (answer["eta_seconds"], answer["device"]) == (755, "cpu of hall")
    assert 'data-eta-seconds="755"' in staff.get(run.get_absolute_url()).content.decode()


def test_an_unfinished_run_is_followed_a_finished_one_is_not(staff):
    assert 'data-poll="5"' not in staff.get(make_run(state=State.FAILED).get_absolute_url()).content.decode()


def test_charts_are_json_and_unknown_ones_do_not_exist(staff):
    run = make_run(state=State.RUNNING)
    RunDirectory(run.path).log(step=12, epoch=1, policy_loss=0.5, selector_loss=1.5, policy_validation_loss=0.6)
    data = staff.get(reverse("training:chart", args=[run.pk, "losses"])).json()
    assert data["x"] == [1]
    assert [(line["label"], line["values"], line["dash"]) for line in data["series"]] == [
        ("Policy", [0.5], False),
        ("Selector", [1.5], False),
        ("Policy validation", [0.6], True),
    ]
    assert staff.get(reverse("training:chart", args=[run.pk, "speed"])).status_code == 404
    assert staff.get(reverse("training:chart", args=[run.pk + 1, "losses"])).status_code == 404


def test_cancel_and_resume(staff):
    run = make_run(state=State.RUNNING)
    answer = staff.post(reverse("training:cancel", args=[run.pk]), follow=True)
    assert "was asked to stop" in answer.content.decode() and "Stopping" in answer.content.decode()
    TrainingRun.objects.filter(pk=run.pk).update(state=State.CANCELLED)
    answer = staff.post(reverse("training:resume", args=[run.pk]), follow=True)
    run.refresh_from_db()
    assert (run.state, run.cancel_requested) == (State.QUEUED, False)
    assert "it has none" not in answer.content.decode()
    assert "Only a failed or cancelled run" in (
        staff.post(reverse("training:resume", args=[run.pk]), follow=True).content.decode()
    )
    staff.post(reverse("training:cancel", args=[run.pk]))
    run.refresh_from_db()
    assert run.state == State.CANCELLED
    again = staff.post(reverse("training:cancel", args=[run.pk]), follow=True)
    assert again.status_code == 200


# --- validation images ---


@pytest.fixture
def finetuned():
    run = make_run(Purpose.FINETUNE, config={"validation_prompts": ["OCT: drusen"]}, state=State.SUCCEEDED)
    (run.path / "validation").mkdir()
    for step in (500, 1000):
        (run.path / "validation" / f"step_{step}.png").write_bytes(png_bytes(step))
    return run


def test_validation_images_are_shown_newest_first_and_labelled(staff, finetuned):
    answer = staff.get(finetuned.get_absolute_url())
    assert answer.context["validation_steps"] == [1000, 500]
    assert "procedural phantom" in answer.content.decode()
    picture = staff.get(reverse("training:validation", args=[finetuned.pk, 500]))
    assert b"".join(picture.streaming_content) == png_bytes(500)
    assert picture["Content-Type"] == "image/png" and "private" in picture["Cache-Control"]


def test_no_other_file_can_be_asked_for(staff, finetuned, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (finetuned.path / "validation" / "step_7.png").symlink_to(tmp_path / "secret.png")
    base = f"/training/{finetuned.pk}/validation/"
    for name in ("7.png", "8.png", "../config.json", "..%2fconfig.json", "step_500.png", "-500.png", "500.png/.."):
        assert staff.get(base + name).status_code == 404, name
