"""What a run is said to cost, against the formulas of training.cost worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
from django.utils import timezone

from tests.training.runs import CONFIG, Purpose, State, make_run
from training import cost
from training.finetuning.arguments import Arguments
from training.rlhf.config import RLHFConfig

pytestmark = pytest.mark.django_db
_TRAINING = RLHFConfig().training
TEN_EPOCHS = replace(
    RLHFConfig(),
    training=replace(_TRAINING, max_epochs=10, checkpoints=replace(_TRAINING.checkpoints, save_frequency=4)),
)


def finished(*, stage1: float, read: float, items: int = 100, epochs: int = 20, device="hall/cpu", **values):
    """A run that trained ``epochs`` of 100 and took so many seconds."""
    figures = {
        "seconds": stage1 + read,
        "timing": {"stage1": stage1, "read": read},
        "counts": {"items": items},
        "last": {"checkpoint": f"epoch_{epochs}"},
    }
    values = {"state": State.SUCCEEDED, "finished_at": timezone.now(), **values}
    return make_run(device=device, figures=figures, **values)


def arguments(**values) -> Arguments:
    return Arguments(train_data_dir=Path("d.csv"), output_dir=Path("out"), **values)


def test_without_an_earlier_run_the_default_is_said_to_be_one():
    estimate = cost.rlhf_cost(TEN_EPOCHS, 200)
    rates = cost.DEFAULT_RLHF
    assert estimate.seconds == pytest.approx(200 * (rates.per_image + 10 * rates.per_unit))
    assert estimate.bytes == 3 * rates.checkpoint_bytes + rates.final_bytes  # epochs 4, 8 and 10
    assert "No comparable run" in estimate.basis


def test_time_follows_the_median_of_comparable_runs():
    for seconds in (2000, 4000, 60000):  # 1, 2 and 30 s per image-epoch: 100 images, 20 epochs
        finished(stage1=seconds, read=50)  # 0.5 s per image
    estimate = cost.rlhf_cost(TEN_EPOCHS, 200)
    assert estimate.seconds == pytest.approx(200 * (0.5 + 10 * 2))
    assert estimate.basis == "From the 3 newest comparable runs on cpu of hall."


def test_runs_of_other_networks_devices_and_ends_do_not_count():
    finished(stage1=2000, read=0)
    other = {**CONFIG, "selector": {"architecture": {"embed_dim": 768}}}
    finished(stage1=9000, read=0, config=other)
    finished(stage1=9000, read=0, state=State.CANCELLED)
    finished(stage1=9000, read=0, device="other/cuda:0", finished_at=timezone.now() - timezone.timedelta(days=1))
    estimate = cost.rlhf_cost(TEN_EPOCHS, 100)
    assert estimate.seconds == pytest.approx(100 * 10 * 1.0)
    assert estimate.basis == "From the newest comparable run on cpu of hall."


def test_old_reports_without_timing_count_as_a_whole():
    run = make_run(
        state=State.SUCCEEDED, finished_at=timezone.now(), figures={"seconds": 500, "counts": {"items": 50}}
    )
    estimate = cost.rlhf_cost(TEN_EPOCHS, 50)
    epochs = run.config["training"]["max_epochs"]
    assert estimate.seconds == pytest.approx(50 * 10 * 500 / (50 * epochs))


def test_disk_is_measured_where_a_run_still_lies():
    run = finished(stage1=2000, read=0)
    (run.path / "best").mkdir()
    (run.path / "best" / "selector.safetensors").write_bytes(b"x" * 700)
    from training.run_directory import RunDirectory

    with RunDirectory(run.path).checkpoint("epoch_20", step=20) as folder:
        (folder / "state.pt").write_bytes(b"x" * 5000)
    size = sum(path.stat().st_size for path in (run.path / "epoch_20").iterdir())
    assert cost.rlhf_cost(TEN_EPOCHS, 10).bytes == 3 * size + 700 and size > 5000


def test_fine_tuning_counts_the_images_of_its_steps():
    make_run(
        Purpose.FINETUNE,
        config={"pretrained_model_name_or_path": "medsyn-tiny", **arguments().as_json()},
        figures={"images_per_second": 4.0},
        state=State.SUCCEEDED,
        finished_at=timezone.now(),
    )
    by_steps = cost.finetuning_cost(arguments(max_train_steps=30, train_batch_size=2, checkpointing_steps=10), 100)
    rates = cost.DEFAULT_FINETUNING
    assert by_steps.seconds == pytest.approx(100 * rates.per_image + 30 * 2 / 4.0)
    assert by_steps.bytes == 3 * rates.checkpoint_bytes + rates.final_bytes
    limited = arguments(max_train_steps=30, checkpointing_steps=10, checkpoints_total_limit=1)
    assert cost.finetuning_cost(limited, 100).bytes == rates.checkpoint_bytes + rates.final_bytes
    by_epochs = cost.finetuning_cost(arguments(num_train_epochs=3, train_batch_size=8), 20)  # 3 steps an epoch
    assert by_epochs.seconds == pytest.approx(20 * rates.per_image + 3 * 3 * 8 / 4.0)
    assert "No comparable run" in cost.finetuning_cost(arguments(resolution=64), 20).basis
