"""Gates: chosen on one half, measured on the other, off where they save too little; against plain loops."""

import dataclasses
import io
import json
import random

import numpy as np
import pytest
import torch
from django.core.management import call_command

from generation.gate_standing import gate_standing
from generation.parameters import Parameters
from generation.production import Call, ModelChoice, load_models
from generation.scoring.gate_plan import SAMPLING_KEYS, UNGATED_SHARE, Gate, read_plan, share_estimate
from generation.scoring.gates import GateConfig, Gates, Views
from tests.generation.conftest import enqueued, tiny_files, tiny_release  # noqa: F401
from training import release_gates
from training.rlhf import train_gates
from training.rlhf.gate_choice import (
    Trials,
    choose_gates,
    evaluations,
    gain_of,
    measure_gain,
    measure_recall,
    rank_correlation,
    recall_by_kind,
    survives,
)
from training.rlhf.gate_trajectories import Trajectories, collect, steps_looked_at, total_steps

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PROMPTS = ("Chest X-ray: normal lung fields without infiltrates", "Brain MRI: left mass, T2 weighted axial slice")


def trials_of(correlation: float, *, number=800, passing=0.3, seed=0, prompt_effect=0.0) -> Trials:
    """Ten steps; the evidence after step t follows the final score with ``correlation`` x sqrt(t / 10) (a copula)."""
    rng = np.random.default_rng(seed)
    prompts = np.arange(number) % 20
    easy = prompt_effect * rng.standard_normal(20)[prompts]
    score = rng.standard_normal(number)
    steps = tuple(range(1, 9))
    strength = [correlation * (step / 10) ** 0.5 for step in steps]
    noise = rng.standard_normal((number, len(steps)))
    seen = np.stack([r * score + np.sqrt(1 - r * r) * noise[:, k] for k, r in enumerate(strength)], axis=1)
    evidence = seen + easy[:, None]
    final = score + easy
    kinds = np.where(prompts < 10, "oct", "fundus")
    costs = np.arange(1, 11)[[step - 1 for step in steps]]
    passed = final >= np.quantile(final, 1 - passing)
    return Trials(
        steps=steps,
        evidence=evidence,
        passed=passed,
        score=final,
        prompts=prompts,
        kinds=kinds,
        costs=costs,
        full_cost=10,
    )


# --- what gates do ---


def test_survival_and_cost_are_those_of_walking_each_trajectory():
    trials = trials_of(0.7, number=200)
    gates = (Gate(5, 0.5), Gate(2, 0.3))  # in any order
    for row in range(200):
        cost, alive = 0, True
        for step in range(1, 11):
            cost += 1
            for gate in gates:
                if gate.step == step and trials.evidence[row, trials.steps.index(step)] < gate.threshold:
                    alive = False
            if not alive:
                break
        assert evaluations(trials, gates)[row] == cost
        assert survives(trials, gates)[row] == alive
    assert survives(trials, ()).all() and (evaluations(trials, ()) == 10).all()


def test_gain_is_the_ratio_of_what_a_long_stream_costs():
    trials = trials_of(0.8, number=400)
    gates = (Gate(3, 0.45), Gate(6, 0.5))
    kept, cost = survives(trials, gates), evaluations(trials, gates)
    draw = random.Random(0)
    used = accepted = plain_used = plain_accepted = 0
    for _ in range(200_000):
        row = draw.randrange(400)
        ungated = draw.random() < UNGATED_SHARE
        used += 10 if ungated else cost[row]
        accepted += trials.passed[row] and (ungated or kept[row])
        plain_used += 10
        plain_accepted += trials.passed[row]
    simulated = (plain_used / plain_accepted) / (used / accepted)
    assert gain_of(trials.passed, kept, cost, 10) == pytest.approx(simulated, rel=0.02)
    assert gain_of(trials.passed, np.ones(400, bool), np.full(400, 10.0), 10) == pytest.approx(1.0)


def test_the_correlation_within_prompts_does_not_count_knowing_which_prompts_are_hard():
    trials = trials_of(0.0, prompt_effect=3.0)
    assert np.corrcoef(trials.evidence[:, -1], trials.score)[0, 1] > 0.5, "pooled, it seems to foresee a lot"
    assert np.abs(rank_correlation(trials)).max() < 0.1
    rising = rank_correlation(trials_of(0.95))
    assert rising == sorted(rising) and rising[-1] > 0.6


def test_the_halves_share_every_prompt():
    first, second = trials_of(0.5, number=203).halves()
    assert len(first) + len(second) == 203
    for prompt in range(20):
        assert abs((first.prompts == prompt).sum() - (second.prompts == prompt).sum()) <= 1


# --- choosing ---


@pytest.mark.parametrize("seed", range(5))
def test_gates_that_foresee_save_and_keep_their_promise_on_the_other_half(seed):
    trials = trials_of(0.97, number=1200, seed=seed, passing=0.25)
    chooses, measures = trials.halves()
    gates = choose_gates(chooses, correlation=rank_correlation(trials), promised_recall=0.8)
    assert 1 <= len(gates) <= 2 and [gate.step for gate in gates] == sorted(gate.step for gate in gates)
    gain, recall = measure_gain(measures, gates, seed=0), measure_recall(measures, gates)
    assert gain.low < gain.value < gain.high
    assert gain.value > 1.15
    assert recall.high > 0.8
    assert min(recall_by_kind(chooses, survives(chooses, gates)).values()) >= 0.6


def test_gates_that_see_nothing_save_nothing():
    for seed in range(5):
        chooses, measures = trials_of(0.0, seed=seed).halves()
        gates = choose_gates(chooses, correlation=[0.0] * 8, promised_recall=0.8)
        assert measure_gain(measures, gates, seed=0).value < 1.1


def test_the_stricter_gate_stands_where_the_correlation_suffices():
    trials = trials_of(0.97, number=1200)
    correlation = [0.0, 0.0, 0.0, 0.0, 0.0, 0.3, 0.61, 0.7]
    gates = choose_gates(trials, correlation=correlation, promised_recall=0.8)
    assert max(gate.step for gate in gates) >= 7


def test_a_kind_that_gates_would_starve_forbids_them():
    trials = trials_of(0.97, number=1200)
    starved = trials.evidence.copy()
    starved[trials.kinds == "oct"] -= 5  # seen as hopeless, though they pass as often
    gates = choose_gates(dataclasses.replace(trials, evidence=starved), correlation=[0.7] * 8, promised_recall=0.8)
    kept = survives(dataclasses.replace(trials, evidence=starved), gates)
    assert min(recall_by_kind(trials, kept).values()) >= 0.6


def plan_of(trials: Trials):
    return train_gates.make_plan(
        trials, Call(PROMPTS, 1, 0, "baseline", Parameters()), promised_recall=0.8, weights_sha256={}
    )


def test_the_plan_is_on_where_it_saves_and_says_why_where_not():
    on = plan_of(trials_of(0.97, number=1200, passing=0.25))
    assert not on.off_reason and on.gates and on.gain.value >= 1.15
    off = plan_of(trials_of(0.2))
    assert off.off_reason.startswith("Switched off: ")
    pooled = plan_of(trials_of(0.0, number=1200, prompt_effect=3.0))
    assert "hard prompts" in pooled.off_reason, "knowing which prompts are hard is no gain for who asked for them"
    few = plan_of(trials_of(0.97, number=100, passing=0.1))
    assert "too few" in few.off_reason and not few.gates
    assert set(on.sampling) == set(SAMPLING_KEYS)
    json.dumps([dataclasses.asdict(plan) for plan in (on, off, few)], allow_nan=False)


def test_a_share_has_wilsons_interval():
    found = share_estimate(8, 10)
    z, n, p = 1.959964, 10, 0.8
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z / (1 + z * z / n) * (p * 0.2 / n + z * z / (4 * n * n)) ** 0.5,
    )
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-6)


# --- learning ---


def synthetic(number=240) -> Trajectories:
    """Trajectories whose clean estimate shows the outcome the better the later: mean of the first channel."""
    draw = torch.Generator().manual_seed(0)
    outcome = torch.randn(number, generator=draw)
    steps = (2, 5, 8)
    latents = torch.randn((number, 3, 4, 8, 8), generator=draw)
    shift = outcome[:, None] * torch.tensor([0.05, 0.3, 0.6])
    latents[:, :, 0] += shift[..., None, None]
    scores = torch.sigmoid(outcome)[:, None].expand(-1, 2).numpy()
    views = Views(
        latents.flatten(0, 1),
        torch.ones(3 * number),
        torch.tensor([0.2, 0.5, 0.8]).repeat(number),
        torch.zeros(3 * number, dtype=torch.long),
        torch.randn((number, 6), generator=draw).repeat_interleave(3, dim=0),
    )
    return Trajectories(
        steps=steps,
        views=views,
        scores=scores,
        prompts=np.arange(number) % 6,
        kinds=np.full(number, "oct"),
        costs=np.array([2, 5, 8]),
        full_cost=10,
    )


def test_gates_learn_to_foresee_and_are_judged_on_what_they_had_not_seen(one_thread):
    trajectories = synthetic()
    targets = train_gates.targets_of(trajectories, 0.6)
    assert torch.equal(targets[:, 2], (torch.from_numpy(trajectories.scores) >= 0.6).all(1).float())
    config = GateConfig(latent_channels=4, text_dim=6, width=8, hidden=16)
    evidence = train_gates.foresee(config, trajectories, targets, updates=80, seed=0)
    correlation = rank_correlation(train_gates.trials_of(trajectories, evidence, targets))
    assert correlation[2] > 0.6 and correlation[2] > correlation[0] + 0.2
    again = train_gates.foresee(config, trajectories, targets, updates=80, seed=0)
    assert np.array_equal(evidence, again)


def test_evidence_does_not_depend_on_who_else_is_asked_about(one_thread):
    views = synthetic(8).views
    torch.manual_seed(1)
    gates = Gates(GateConfig(latent_channels=4, text_dim=6))
    together = gates.evidence(views)
    alone = torch.cat([gates.evidence(views.at(torch.tensor([row]))) for row in range(len(views))])
    assert torch.equal(together, alone)


# --- the process and the command ---


@pytest.mark.parametrize("total", [2, 4, 10, 20, 50, 200])
def test_gates_may_stand_between_the_first_tenth_and_three_quarters(total):
    steps = steps_looked_at(total)
    assert list(steps) == sorted(set(steps)) and len(steps) <= 16
    assert 1 <= steps[0] <= max(1, 0.15 * total) and steps[-1] <= max(1, 0.75 * total + 0.5) and steps[-1] < total


@pytest.fixture
def call() -> Call:
    parameters = Parameters(num_inference_steps=5, guidance_scale=2.0, guidance_interval=(0.3, 1.0), batch_size=4)
    return Call(PROMPTS, 20, 7, "baseline", parameters)


@pytest.fixture
def models(tiny_files):  # noqa: F811
    from generation.diffusion.loading import ModelSource

    source = ModelSource(pretrained_model=str(tiny_files["pipeline_folder"]), model_used=None)
    return load_models(ModelChoice(source, tiny_files["selector_file"], tiny_files["policy_file"], "cpu", "float32"))


def test_a_collection_that_was_interrupted_goes_on_with_the_same_trajectories(call, models, tmp_path):
    whole = collect(models, call, tmp_path / "whole", report=lambda done: None)
    done = []
    collect(models, call, tmp_path / "parts", report=done.append)
    assert done == [32, 40]
    second = sorted((tmp_path / "parts").glob("*.safetensors"))[1]
    second.unlink()
    again = collect(models, call, tmp_path / "parts", report=lambda done: None)
    assert torch.equal(again.views.latents, whole.views.latents)
    assert np.array_equal(again.scores, whole.scores)
    assert len(whole) == 40 and len(whole.views) == 40 * len(whole.steps)
    assert whole.full_cost == total_steps(models, call)[1].sum() == 5 + 4
    guided = whole.views.distance.reshape(40, -1)[0] > 0
    assert guided.tolist() == [(step - 0.5) / 5 >= 0.3 for step in whole.steps]


@pytest.fixture
def in_this_process(monkeypatch):
    """The training without a second interpreter: its imports take longer than its work here."""
    commands = []

    def run(command, log):
        commands.append(command)
        assert command[1:3] == ["-m", "training.rlhf.train_gates"]
        assert train_gates.main([*command[3:], "--updates", "3"]) == 0

    monkeypatch.setattr(release_gates, "_run", run)
    return commands


def test_the_command_publishes_a_release_with_gates(tiny_release, tmp_path, in_this_process, settings):  # noqa: F811
    settings.DEVICE = "cpu"
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    out = io.StringIO()
    given = {"prompts_file": tmp_path / "prompts.txt", "num_trajectories": 12, "num_inference_steps": 4}
    call_command("train_gates", **given, name="gated", activate=True, stdout=out)
    release = tiny_release.__class__.objects.get(name="gated")
    standing = gate_standing(release)
    assert standing.sentence in out.getvalue() and "too few" in standing.sentence
    assert "published, not active" in out.getvalue(), "gates that are off are no reason to change what is served"
    plan = read_plan(release.folder / "gates_checkpoint.safetensors")
    assert plan.sampling["num_inference_steps"] == 4
    assert plan.sampling["quality_threshold"] == tiny_release.quality_threshold
    assert plan.weights_sha256["selector"] == tiny_release.selector_sha256
    assert plan.trajectories == 12
    call_command("train_gates", release=tiny_release.digest, **given, name="gated", stdout=io.StringIO())
    assert tiny_release.__class__.objects.count() == 2, "the same gates are the same release"


def test_without_a_prompt_there_is_nothing_to_draw(tiny_release, in_this_process):  # noqa: F811
    with pytest.raises(release_gates.GatesError, match="--prompts_file"):
        release_gates.train_release_gates(release=tiny_release)
    assert not in_this_process


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(release_gates.GatesError, match="exit code 3(.|\n)*not today"):
        release_gates._run(
            ["/bin/sh", "-c", "echo not today; exit 3"],
            tmp_path / "log",
        )


def test_faults_of_the_input_are_told_without_a_traceback(tmp_path, tiny_files, caplog):  # noqa: F811
    (tmp_path / "prompts.txt").write_text("a dog")
    code = train_gates.main(
        ["--run_directory", str(tmp_path / "run"), "--prompts_file", str(tmp_path / "prompts.txt")]
        + ["--pipeline", str(tiny_files["pipeline_folder"]), "--device", "cpu"]
        + ["--selector_checkpoint", str(tiny_files["selector_file"])]
        + ["--policy_checkpoint", str(tiny_files["policy_file"])]
    )
    assert code == 2 and "has no prefix" in caplog.text
