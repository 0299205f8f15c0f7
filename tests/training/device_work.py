"""The product's networks at work on a pretended device, in a process of its own.

    python -m tests.training.device_work NAME FOLDER

NAME is one of WORK. The process ends with 0 where the work was done, and on the device.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from tests.pretended_device import DEVICE, Operations, pretended  # first: it changes torch

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

import django

django.setup()

import torch  # noqa: E402
from accelerate.state import PartialState  # noqa: E402

from generation import production  # noqa: E402
from generation.diffusion import loading  # noqa: E402
from generation.filtering import Ledger  # noqa: E402
from generation.parameters import Parameters  # noqa: E402
from generation.production import Call, ModelChoice, load_models  # noqa: E402
from generation.scoring.gate_plan import Gate  # noqa: E402
from tests.tiny_models import write_tiny_models  # noqa: E402
from tests.training import finetuning_runs, rlhf_files, rlhf_runs, update_runs  # noqa: E402
from training.reading.choice import score  # noqa: E402
from training.rlhf import train, train_gates  # noqa: E402
from training.rlhf.processes import Processes  # noqa: E402
from training.rlhf.trainer import Trainer  # noqa: E402
from training.run_directory import RunDirectory  # noqa: E402

PROMPTS = ("Chest X-ray: normal lung fields without infiltrates", "Brain MRI: left mass, T2 weighted axial slice")
STEPS = 4


def rate(folder: Path) -> None:
    """Selector and policy learn with encoders that learn too, are cut off and resumed, calibrated and measured."""
    rlhf_files.write_ratings_file(folder, images=15, ratings=1)
    rlhf_files.write_text_encoder(folder / "pipeline")
    command = rlhf_runs.arguments(
        folder, folder / "run", max_epochs=2, unfreeze_from=0, checkpoints={"save_frequency": 1}
    )
    train_epoch = Trainer.train_epoch
    cut_off = mock.patch.object(Trainer, "train_epoch", lambda trainer, **rest: _first(trainer, train_epoch, **rest))
    with cut_off, contextlib.suppress(KeyboardInterrupt):
        train.main(command)
    assert (folder / "run" / "epoch_1").is_dir() and not (folder / "run" / "report.json").exists()
    assert train.main(command) == 0
    assert (folder / "run" / "report.json").is_file()


def _first(trainer: Trainer, train_epoch: Callable, **rest: object) -> object:
    if trainer.epoch > 0:
        raise KeyboardInterrupt
    return train_epoch(trainer, **rest)


def generate(folder: Path) -> None:
    """Images are drawn, filtered, asked about by gates that were trained here, and scored for a reading list."""
    files = write_tiny_models(folder)
    choice = ModelChoice(
        loading.ModelSource(str(files.pop("pipeline_folder")), None), **files, device="auto", precision="float32"
    )
    models = load_models(choice)
    parameters = Parameters(num_inference_steps=STEPS, guidance_scale=2.0, batch_size=2, quality_threshold=0.0)
    plain = Call(PROMPTS, 1, 0, "baseline", dataclasses.replace(parameters, use_gates=False))
    drawn = [one for batch in production.draw_baseline(models, plain) for one in batch]
    assert [one.seed for one in drawn] == [0, 1]

    trained = dataclasses.replace(plain, num_images=6)
    plan = train_gates.train_gates(models, trained, RunDirectory(folder / "gates"), updates=2)
    gates = train_gates.Gates.load(folder / "gates" / train_gates.GATES_NAME).to(DEVICE)
    gates.plan = dataclasses.replace(plan, gates=(Gate(2, -1e9),), off_reason="")
    models = dataclasses.replace(models, gates=gates, gates_sha256="0" * 64)
    call = Call(PROMPTS, 1, 0, "rlhf", parameters)
    assert production.gates_in_use(models, call) is gates
    ledger = Ledger(call.rule, call.seed, call.num_places)
    served = [one for batch in production.draw_filtered(models, call, ledger) for one in batch]
    assert ledger.spent.accepted == len(PROMPTS)
    assert {one.verdict.accepted for one in served} == {True}

    for one in drawn:
        one.picture.save(folder / f"{one.position}.png")
    images = [
        SimpleNamespace(path=folder / f"{k}.png", prompt=SimpleNamespace(kind=kind), public_id=k)
        for k, kind in enumerate(("chest_xray", "brain_mri"))
    ]
    heads, embeddings = score(SimpleNamespace(report=lambda *progress: None), models.judges.selector, images)
    assert heads.shape == (2, 2) and len(embeddings) == 2


def finetune(folder: Path) -> None:
    """A generator learns with accelerate, keeps a moving average, stops and goes on."""
    base, output = finetuning_runs.write_base(folder), folder / "run"
    flags = ("--use_ema", "--snr_gamma", "5", "--checkpointing_steps", "1", "--caption_dropout", "0.5")
    assert finetuning_runs.tune(base, output, *flags, "--max_train_steps", "1") == 0
    assert (
        finetuning_runs.tune(base, output, *flags, "--max_train_steps", "2", "--resume_from_checkpoint", "latest")
        == 0
    )


def improve(folder: Path) -> None:
    """An update of the generator: drawn, scored, learnt from, drawn again, decided."""
    assert update_runs.update(update_runs.write_pieces(folder), folder / "run", objective="kto") == 0
    assert (folder / "run" / "report.json").is_file()


WORK = {work.__name__: work for work in (rate, generate, finetune, improve)}


def main(name: str, folder: Path) -> int:
    torch.set_num_threads(1)
    launched = classmethod(lambda cls, *, use_cuda: (cls(), DEVICE))
    with (
        mock.patch.object(loading, "choose_device", lambda wanted: DEVICE),
        mock.patch.object(Processes, "launched", launched),
        mock.patch.object(PartialState, "default_device", property(lambda state: DEVICE)),
        pretended(),
    ):
        WORK[name](folder)
    sys.stdout.write(f"{Operations.count} operations on {DEVICE}\n")
    return 0 if Operations.count > 500 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
