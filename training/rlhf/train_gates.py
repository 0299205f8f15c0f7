"""Train the gates of a generator with its selector and policy, from trajectories that nobody rates.

    python -m training.rlhf.train_gates --run_directory DIR --pipeline FOLDER --selector_checkpoint FILE
        --policy_checkpoint FILE --prompts_file FILE

Draws trajectories of the prompts, has selector and policy judge their ends, and teaches a small network to foresee
that judgement from the way (self-distillation, METHOD.md 5). DIR then holds gates_checkpoint.safetensors, with
the gates' places, thresholds and what they save, and report.json. Gates that save too little are written switched
off, with the reason. Started again in the same directory it goes on. Knows no Django.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from generation.diffusion.loading import ModelNotFound, ModelSource
from generation.parameters import ParameterError, Parameters, recommended_in
from generation.production import Call, ModelChoice, Models, load_models
from generation.scoring.gate_plan import GATES_NAME, SAMPLING_KEYS, SMALLEST_GAIN, GatePlan
from generation.scoring.gates import GateConfig, Gates, evidence_in
from generation.scoring.network_file import NetworkFileError
from medsyn.artifacts import write_json
from medsyn.modalities import PromptError, parse_prompt
from medsyn.percent import percent
from training import lifeline
from training.rlhf.gate_choice import (
    DROP_CORRELATION,
    Trials,
    choose_gates,
    measure_gain,
    measure_recall,
    rank_correlation,
    recall_by_kind,
    survives,
)
from training.rlhf.gate_trajectories import Trajectories, collect
from training.run_directory import RunDirectory, RunDirectoryBusy

logger = logging.getLogger("training.rlhf.gates")
REPORT_NAME = "report.json"
EXIT_FAULT = 2  # the input, not the program, was at fault
_USER_FAULTS = (FileNotFoundError, ModelNotFound, NetworkFileError, ParameterError, PromptError, RunDirectoryBusy)

_FOLDS = 3
_BATCH = 128  # views
_LEARNING_RATE = 2e-3
_WEIGHT_DECAY = 0.05
_FEWEST_ACCEPTED = 20  # of the half that chooses: with fewer no threshold means anything


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parse(arguments)
    lifeline.follow_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        run = RunDirectory(options.run_directory)
        with run.lock():
            models = load_models(_choice(options))
            call = _call(options, models)
            plan = train_gates(models, call, run, promised_recall=options.recall, updates=options.updates)
    except _USER_FAULTS as error:
        logger.error("%s", error)
        return EXIT_FAULT
    logger.info("%s", plan.off_reason or f"Gates save {plan.gain.value:.2f}x at recall {plan.recall.value:.2f}.")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.rlhf.train_gates", description=__doc__.splitlines()[0])
    parser.add_argument("--run_directory", type=Path, required=True)
    parser.add_argument("--pipeline", required=True, help="the generator's folder")
    parser.add_argument("--selector_checkpoint", type=Path, required=True)
    parser.add_argument("--policy_checkpoint", type=Path, required=True)
    parser.add_argument("--prompts_file", type=Path, required=True, help="one prompt per line")
    parser.add_argument("--num_trajectories", type=int, default=1000, help="in all, spread evenly over the prompts")
    parser.add_argument("--parameters", type=Path, help="JSON of generation parameters: how the gates will be used")
    parser.add_argument("--recall", type=float, default=0.8, help="share of passing images that gates let through")
    parser.add_argument("--updates", type=int, default=400, help="steps of the network's training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    return parser.parse_args(arguments)


def _choice(options: argparse.Namespace) -> ModelChoice:
    return ModelChoice(
        ModelSource(pretrained_model=options.pipeline, model_used=None),
        options.selector_checkpoint,
        options.policy_checkpoint,
        options.device,
        _given_parameters(options).get("precision", Parameters().precision),
    )


def _given_parameters(options: argparse.Namespace) -> dict:
    return json.loads(options.parameters.read_text()) if options.parameters else {}


def _call(options: argparse.Namespace, models: Models) -> Call:
    """As many images of each prompt as there are to be trajectories; sampled as recommended where nothing is said."""
    lines = options.prompts_file.read_text(encoding="utf-8").splitlines()
    prompts = tuple(dict.fromkeys(parse_prompt(line).text for line in lines if line.strip()))
    if not prompts:
        raise PromptError(f"{options.prompts_file} holds no prompt. Write one per line.")
    parameters = Parameters.from_mapping(
        recommended_in(models.generator.pipeline.config) | _given_parameters(options) | {"use_gates": False}
    )
    each = max(1, round(options.num_trajectories / len(prompts)))
    return Call(prompts, each, options.seed, "baseline", parameters)


def train_gates(
    models: Models, call: Call, run: RunDirectory, *, promised_recall: float = 0.8, updates: int = 400
) -> GatePlan:
    """Collect, learn, choose, measure; writes the gates and the report into the run's directory."""

    def report(done: int) -> None:
        run.log(progress={"done": done, "total": call.num_places, "unit": "trajectories"})

    trajectories = collect(models, call, run.path / "trajectories", report=report)
    config = GateConfig(trajectories.views.latents.shape[1], trajectories.views.text.shape[1])
    targets = targets_of(trajectories, call.parameters.quality_threshold)
    everyone = np.arange(len(trajectories))
    evidence = foresee(config, trajectories, targets, updates=updates, seed=call.seed)
    trials = trials_of(trajectories, evidence, targets)
    plan = make_plan(trials, call, promised_recall=promised_recall, weights_sha256=models.sha256)
    gates = fit(config, trajectories, targets, everyone, updates=updates, seed=call.seed)
    gates.plan = plan
    gates.save(run.path / GATES_NAME)
    write_json(run.path / REPORT_NAME, dataclasses.asdict(plan))
    return plan


# --- learning ---


def targets_of(trajectories: Trajectories, quality_threshold: float) -> Tensor:
    """(N, 4): both final scores, and whether they pass, for the way and for the prompt to foresee."""
    scores = torch.from_numpy(trajectories.scores)
    passed = (scores >= quality_threshold).all(1)
    return torch.cat([scores, passed[:, None].float().expand(-1, 2)], dim=1)


def fit(
    config: GateConfig, trajectories: Trajectories, targets: Tensor, index: np.ndarray, *, updates: int, seed: int
) -> Gates:
    """A network that learned from the trajectories at ``index``, in evaluation mode.

    Each update takes views from anywhere on the way: the network learns what noise of each size hides.
    """
    rows, each = trajectories.rows(index), len(trajectories.steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gates = Gates(config).train()
        optimizer = torch.optim.AdamW(gates.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=updates)
        for _ in range(updates):
            batch = rows[torch.randint(len(rows), (_BATCH,))]
            logits = gates(trajectories.views.at(batch))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, targets[batch // each])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return gates.eval()


def foresee(
    config: GateConfig, trajectories: Trajectories, targets: Tensor, *, updates: int, seed: int
) -> np.ndarray:
    """(N, S) evidence of passing, each from a network that had not seen the trajectory."""
    fold = np.random.default_rng(seed).permutation(len(trajectories)) % _FOLDS
    evidence = np.empty((len(trajectories), len(trajectories.steps)))
    for number in range(_FOLDS):
        network = fit(config, trajectories, targets, np.flatnonzero(fold != number), updates=updates, seed=seed)
        held_out = np.flatnonzero(fold == number)
        with torch.no_grad():
            logits = network(trajectories.views.at(trajectories.rows(held_out)))
        evidence[held_out] = evidence_in(logits).reshape(len(held_out), -1).numpy()
    return evidence


def trials_of(trajectories: Trajectories, evidence: np.ndarray, targets: Tensor) -> Trials:
    return Trials(
        steps=trajectories.steps,
        evidence=evidence,
        passed=targets[:, 2].numpy() > 0,
        score=trajectories.scores.min(axis=1),
        prompts=trajectories.prompts,
        kinds=trajectories.kinds,
        costs=trajectories.costs,
        full_cost=trajectories.full_cost,
    )


# --- deciding ---


def make_plan(trials: Trials, call: Call, *, promised_recall: float, weights_sha256: dict[str, str]) -> GatePlan:
    """Choose gates on one half of the trajectories and measure them on the other; off where they save too little."""
    chooses, measures = trials.halves()
    correlation = rank_correlation(trials)
    enough = chooses.passed.sum() >= _FEWEST_ACCEPTED
    gates = choose_gates(chooses, correlation=correlation, promised_recall=promised_recall) if enough else ()
    plan = GatePlan(
        sampling={key: getattr(call.parameters, key) for key in SAMPLING_KEYS},
        gates=gates,
        promised_recall=promised_recall,
        recall=measure_recall(measures, gates),
        gain=measure_gain(measures, gates, seed=call.seed),
        recall_by_kind=recall_by_kind(measures, survives(measures, gates)),
        rank_correlation=correlation,
        trajectories=len(trials),
        weights_sha256=weights_sha256,
    )
    return dataclasses.replace(plan, off_reason=_why_off(plan, int(chooses.passed.sum())))


def _why_off(plan: GatePlan, accepted: int) -> str:
    if accepted < _FEWEST_ACCEPTED:
        return (
            f"Switched off: {accepted} accepted trajectories are too few to choose by; {_FEWEST_ACCEPTED} are needed."
        )
    best = max(plan.rank_correlation)
    if best < DROP_CORRELATION:
        return (
            f"Switched off: within a prompt they foresee the final score at a rank correlation of {best:.2f}; "
            f"{DROP_CORRELATION:g} is needed. What they seem to save is giving up on hard prompts."
        )
    if not plan.gates:
        return f"Switched off: no gate saves anything at a recall of {plan.promised_recall:g}."
    if plan.gain.value < SMALLEST_GAIN:
        return (
            f"Switched off: they save {plan.gain.value:.2f}x ({percent(0.95)} {plan.gain.low:.2f} to "
            f"{plan.gain.high:.2f}); under {SMALLEST_GAIN:g}x they are not worth their losses."
        )
    if plan.recall.high < plan.promised_recall:
        return (
            f"Switched off: they let through {percent(plan.recall.value, 0)} of what would pass (at most "
            f"{percent(plan.recall.high, 0)}); {percent(plan.promised_recall)} was promised."
        )
    return ""


if __name__ == "__main__":
    sys.exit(main())
