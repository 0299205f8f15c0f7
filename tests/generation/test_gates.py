"""Gates in serving: they stop, they are counted, they promise, they lapse, and what they let through is untouched."""

import hashlib
import json

import pytest
import torch
from PIL import Image

from generation import engine, production
from generation.filtering import Ledger
from generation.gate_standing import FEWEST_UNGATED, gate_standing, gates_file_of
from generation.models import GeneratedImage
from generation.parameters import Parameters
from generation.records import png_bytes
from generation.scoring.gate_plan import (
    GATES_NAME,
    SAMPLING_KEYS,
    UNGATED_SHARE,
    Estimate,
    Gate,
    GatePlan,
    GatesFileError,
    is_ungated,
    read_plan,
    share_estimate,
)
from generation.scoring.gates import GateConfig, Gates, text_summary, view_of
from generation.scoring.network_file import NetworkFileError
from generation.services import ReleaseError, activate_release, attach_gates, start_generation
from generation.tasks import run_generation_job
from medsyn.artifacts import file_sha256

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

PROMPTS = ("Chest X-ray: normal lung fields without infiltrates", "Brain MRI: left mass, T2 weighted axial slice")
PARAMETERS = Parameters(
    num_inference_steps=6, guidance_scale=3.0, guidance_interval=(0.2, 0.8), batch_size=3, quality_threshold=0.0
)
CALL = production.Call(PROMPTS, 4, 40, "rlhf", PARAMETERS)


@pytest.fixture(autouse=True)
def cpu(settings):
    settings.DEVICE = "cpu"
    settings.JOB_LEASE_SECONDS = 3600


def plan_with(**changes) -> GatePlan:
    values = {
        "sampling": {key: getattr(PARAMETERS, key) for key in SAMPLING_KEYS},
        "gates": (Gate(2, 0.5), Gate(4, 0.5)),
        "promised_recall": 0.8,
        "recall": Estimate(0.9, 0.8, 0.95),
        "gain": Estimate(1.4, 1.2, 1.6),
        "recall_by_kind": {"chest_xray": 0.9},
        "rank_correlation": [0.1, 0.4, 0.6, 0.7],
        "trajectories": 100,
    }
    return GatePlan(**values | changes)


@pytest.fixture
def gates_file(tiny_release, tmp_path):
    """``gates_file(**plan)``: random gates of the tiny release, whose thresholds split its trajectories."""
    models = engine.models_for(tiny_release, "", "float32")

    def make(**changes):
        torch.manual_seed(3)
        with torch.random.fork_rng(devices=[]):
            gates = Gates(
                GateConfig(latent_channels=4, text_dim=models.prompts.conditioning(PROMPTS).tokens.shape[-1])
            )
        evidence = evidence_of(models, gates)
        middle = tuple(Gate(step, float(torch.tensor(values).quantile(0.4))) for step, values in evidence.items())
        gates.plan = plan_with(**{"gates": middle, "weights_sha256": models.sha256} | changes)
        gates.save(tmp_path / GATES_NAME)
        return tmp_path / GATES_NAME

    return make


def evidence_of(models, gates) -> dict[int, list[float]]:
    """What the gates say after steps 2 and 4 of the first candidates of each place, nothing being stopped."""
    found: dict[int, list[float]] = {2: [], 4: []}

    def look(trajectories):
        for one in trajectories:
            if one.done in found:
                text = text_summary(models.prompts.conditioning([one.prompt]))
                found[one.done].append(gates.evidence(view_of(one, text)).item())
        return [True] * len(trajectories)

    drawing = production.CandidateDrawing(models, CALL)
    drawing.batch._keep = look
    for place in range(CALL.num_places):
        drawing.begin(CALL.rule.candidate(place * CALL.rule.candidates_per_place, CALL.seed))
    while drawing.batch.under_way:
        drawing.step()
    return found


@pytest.fixture
def gated_release(tiny_release, gates_file):
    return activate_release(release=attach_gates(release=tiny_release, gates_file=gates_file()))


@pytest.fixture
def run(alice, enqueued):
    def job(release, parameters=PARAMETERS):
        row = start_generation(
            prompts=PROMPTS, num_images=4, seed=40, user=alice, mode="rlhf", parameters=parameters, release=release
        )
        run_generation_job(row.pk)
        row.refresh_from_db()
        assert row.state == "succeeded", row.error
        return row

    return job


# --- serving ---


def test_stopped_candidates_are_counted_and_those_let_through_keep_every_bit(run, gated_release):
    gated, whole = run(gated_release), run(gated_release, Parameters(**PARAMETERS.as_dict() | {"use_gates": False}))
    assert gated.spent["stopped"] > 0 and whole.spent["stopped"] == 0
    assert gated.spent["accepted"] == whole.spent["accepted"] == 8, "every candidate passes that reaches its end"
    assert gated.images.count() == 8, "what was stopped is no image"
    alike = {image.seed: image for image in whole.images.all()}
    shared = [image for image in gated.images.all() if image.seed in alike]
    assert shared
    for image in shared:
        assert image.sha256 == alike[image.seed].sha256
    for image in gated.images.all():  # drawn while others were stopped and refilled beside it
        again = engine.regenerate(image)
        png = png_bytes(again, prompt=image.prompt.text, seed=image.seed, is_phantom=image.is_phantom)
        assert hashlib.sha256(png).hexdigest() == image.sha256


def test_each_place_is_served_the_first_candidate_that_gates_and_filter_let_through(run, gated_release):
    job = run(gated_release)
    ledger = engine.ledger_of(job)
    for place in range(8):
        (image,) = job.images.filter(position__gte=place * 30, position__lt=place * 30 + 30)
        stopped = ledger.spent_on(place).stopped
        assert image.position == place * 30 + stopped, "all before it were stopped"


def test_what_a_job_spent_adds_up(run, gated_release):
    job = run(gated_release)
    guided = sum(0.2 <= (step + 0.5) / 6 <= 0.8 for step in range(6))
    assert {image.unet_evaluations for image in job.images.all()} == {6 + guided}
    spent = job.spent
    assert spent["candidates"] == spent["accepted"] + spent["stopped"] + spent["dropped"]
    assert spent["unet_evaluations"] == sum(values[0] for values in spent["places"].values())
    assert spent["unet_evaluations"] >= 8 * (6 + guided) + spent["stopped"] * 3, "stopping after step 2 costs 3"
    facts = json.loads(job.images.first().path.with_suffix(".json").read_text())
    assert facts["weights_sha256"]["gates"] == gated_release.gates_sha256
    assert facts["parameters"]["use_gates"] is True


def test_one_in_twenty_runs_ungated_and_says_what_the_gates_would_have_done(run, gated_release, monkeypatch):
    monkeypatch.setattr(production, "is_ungated", lambda seed: seed % 2 == 0)
    job = run(gated_release)
    even = job.images.filter(seed__in=[image.seed for image in job.images.all() if image.seed % 2 == 0])
    assert even.exists() and not even.filter(gates_would_stop=None).exists()
    assert set(even.values_list("gates_would_stop", flat=True)) == {True, False}
    assert not job.images.exclude(pk__in=even).exclude(gates_would_stop=None).exists()
    assert list(GeneratedImage.objects.ungated()) == list(even)


def test_the_ungated_share_is_one_in_twenty_and_always_the_same():
    first = [is_ungated(seed) for seed in range(20_000)]
    assert abs(sum(first) / 20_000 - UNGATED_SHARE) < 0.006
    assert first == [is_ungated(seed) for seed in range(20_000)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_gates": False}, "asked for none"),
        ({"num_inference_steps": 8}, "num_inference_steps = 6; this call has 8"),
        ({"quality_threshold": 0.1}, "quality_threshold = 0.0; this call has 0.1"),
        ({"guidance_interval": (0.0, 1.0)}, "guidance_interval"),
    ],
)
def test_elsewhere_than_where_they_were_trained_gates_are_not_used(run, gated_release, changes, reason):
    parameters = Parameters(**PARAMETERS.as_dict() | changes)
    models = engine.models_for(gated_release, "", "float32")
    assert reason in models.gates.plan.why_not(parameters.as_dict())
    call = production.Call(PROMPTS, 1, 40, "rlhf", parameters)
    assert production.gates_in_use(models, call) is None
    ledger = Ledger(call.rule, call.seed, call.num_places)
    drawn = [one for batch in production.draw_filtered(models, call, ledger) for one in batch]
    assert ledger.spent.stopped == 0
    assert {one.gates_would_stop for one in drawn} == {None}


# --- the release ---


def test_gates_make_a_release_of_its_own(tiny_release, gates_file):
    path = gates_file()
    release = attach_gates(release=tiny_release, gates_file=path, name="with gates")
    assert release.digest != tiny_release.digest and not release.is_active
    assert release.gates_sha256 == file_sha256(path) == file_sha256(release.folder / GATES_NAME)
    assert release.pipeline_sha256 == tiny_release.pipeline_sha256
    assert release.manifest["without_gates"] == tiny_release.digest
    assert release.manifest["report"] == tiny_release.manifest["report"]
    assert attach_gates(release=tiny_release, gates_file=path) == release, "the same pieces are the same release"
    activate_release(release=release)  # compares every file with the manifest
    assert gates_file_of(release) == release.folder / GATES_NAME
    assert gates_file_of(tiny_release) is None


def test_gates_of_another_selector_are_refused(tiny_release, gates_file):
    path = gates_file(weights_sha256={"selector": "0" * 64, "policy": tiny_release.policy_sha256})
    with pytest.raises(ReleaseError, match="another selector"):
        attach_gates(release=tiny_release, gates_file=path)


def test_a_file_that_holds_no_gates_is_refused(tiny_release, tmp_path):
    for path in (tiny_release.folder / "selector_checkpoint.safetensors", tmp_path / "nothing.safetensors"):
        with pytest.raises(ReleaseError, match="Train gates|holds no gates"):
            attach_gates(release=tiny_release, gates_file=path)
        with pytest.raises(GatesFileError):
            read_plan(path)
        with pytest.raises(NetworkFileError):
            Gates.load(path)


def test_gates_come_back_from_their_file_as_they_went(gates_file):
    path = gates_file()
    gates = Gates.load(path)
    assert gates.plan == read_plan(path)
    gates.save(path.with_name("again.safetensors"))
    assert file_sha256(path.with_name("again.safetensors")) == file_sha256(path)


# --- the switch ---


def add_ungated(job, let_through: int, stopped: int) -> None:
    """Accepted images of that release that no gate could stop."""
    image = job.images.accepted().first()
    for number in range(let_through + stopped):
        image.pk, image.public_id, image.position = None, f"00000000-0000-4000-8000-{number:012d}", 1000 + number
        image.gates_would_stop = number >= let_through
        image._state.adding = True
        image.save()


def test_gates_switch_themselves_off_when_recall_is_surely_under_the_promise(run, gated_release):
    job = run(gated_release)
    job.images.update(gates_would_stop=None)
    assert gate_standing(gated_release).is_on
    add_ungated(job, let_through=4, stopped=8)
    standing = gate_standing(gated_release)
    assert share_estimate(4, 12).high < 0.8
    assert not standing.is_on and standing.ungated_accepted == 12
    assert "of 12 accepted images" in standing.sentence and "33\u00a0%" in standing.sentence
    models = engine.models_for(gated_release, "", "float32")
    assert models.gates is None, "the worker draws without them from now on"
    again = run(gated_release)
    assert again.spent["stopped"] == 0
    assert not again.images.ungated().exists()


@pytest.mark.parametrize(("let_through", "stopped"), [(9, 3), (0, FEWEST_UNGATED - 1), (40, 8)])
def test_they_stay_on_while_the_promise_may_still_hold(run, gated_release, let_through, stopped):
    job = run(gated_release)
    job.images.update(gates_would_stop=None)
    add_ungated(job, let_through, stopped)
    assert gate_standing(gated_release).is_on


def test_gates_that_training_switched_off_are_stored_with_the_reason_and_not_used(run, tiny_release, gates_file):
    reason = "Switched off: they save 1.05x (95\u00a0% 0.98 to 1.12); under 1.15x they are not worth their losses."
    release = attach_gates(release=tiny_release, gates_file=gates_file(off_reason=reason))
    standing = gate_standing(release)
    assert (standing.is_on, standing.sentence) == (False, reason)
    assert standing.plan.gates, "what was tried stays on record"
    assert gates_file_of(release) is None
    assert run(release).spent["stopped"] == 0
    with Image.open(GeneratedImage.objects.first().path) as picture:
        assert picture.size == (32, 32)
