"""Recipes: their values, what wins over them, and their phases going on from one another."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.finetuning_runs import largest_difference, tune
from training import runner
from training.finetuning.arguments import Arguments, parse_arguments, with_recipe
from training.finetuning.recipes import RECIPES
from training.models import TrainingRun
from training.run_directory import RunDirectory

REALDATA = Path(__file__).parents[3] / "shared" / "realdata"
HERE = ["--train_data_dir", "d.csv", "--output_dir", "o"]
# On this machine: no GPU, small batches.
SMALL = ("--no-use_8bit_adam", "--mixed_precision", "no", "--gradient_accumulation_steps", "1", "--no-scale_lr")


def test_the_fundus_phases_are_those_of_the_specification():
    columns = (
        "resolution", "max_train_steps", "learning_rate", "lr_scheduler", "lr_warmup_steps", "snr_gamma",
        "noise_offset", "gradient_accumulation_steps", "validation_scheduler",
    )  # fmt: skip
    table = {
        "fundus-1": (256, 5_000, 1e-5, "constant", 0, None, 0.0, 32, "euler_a"),
        "fundus-2": (256, 10_000, 1e-5, "cosine", 500, 5.0, 0.03, 48, "euler_a"),
        "fundus-3a": (320, 12_000, 8e-6, "cosine", 0, 5.0, 0.03, 64, "euler_a"),
        "fundus-3b": (320, 18_000, 5e-6, "cosine", 0, 5.0, 0.03, 64, "euler_a"),
        "fundus-4": (384, 20_000, 3e-6, "cosine", 300, 5.0, 0.05, 96, "dpm"),
    }
    assert list(RECIPES) == list(table)
    for name, values in table.items():
        arguments = parse_arguments([*HERE, "--recipe", name])
        assert tuple(getattr(arguments, column) for column in columns) == values
        assert arguments.use_8bit_adam and arguments.gradient_checkpointing
        assert (arguments.train_batch_size, arguments.num_validation_images) == (1, 9)
    assert not parse_arguments(HERE).use_8bit_adam, "no recipe, no change"


def test_a_flag_that_is_given_wins_even_with_its_default():
    flags = [
        "--recipe",
        "fundus-2",
        "--gradient_accumulation_steps",
        "1",
        "--no-use-8bit-adam",
        "--noise_offset",
        "0",
    ]
    arguments = parse_arguments([*HERE, *flags])
    assert (arguments.gradient_accumulation_steps, arguments.use_8bit_adam, arguments.noise_offset) == (1, False, 0)
    assert (arguments.snr_gamma, arguments.recipe) == (5.0, "fundus-2")


def test_a_form_that_sends_every_field_gets_the_recipe_where_it_was_left_alone():
    arguments = with_recipe(
        Arguments(train_data_dir=Path("d.csv"), output_dir=Path("o"), recipe="fundus-4", max_train_steps=7)
    )
    assert (arguments.resolution, arguments.learning_rate, arguments.max_train_steps) == (384, 3e-6, 7)
    plain = Arguments(train_data_dir=Path("d.csv"), output_dir=Path("o"))
    assert with_recipe(plain) == plain


def test_a_worker_starts_a_recipe_as_it_was_asked_for(tmp_path):
    asked = parse_arguments([*HERE, "--recipe", "fundus-3a", "--no-use_8bit_adam", "--resolution", "64"])
    run = TrainingRun(purpose="finetune", config=asked.as_json(), run_directory=str(tmp_path))
    command = runner.command_for(run)
    flags = command[command.index("training.finetuning.train") + 1 :]
    again = parse_arguments(flags)
    assert (again.use_8bit_adam, again.resolution, again.learning_rate) == (False, 64, 8e-6)
    assert again.as_json() | {"output_dir": "o"} == asked.as_json()


@pytest.mark.usefixtures("one_thread")
def test_each_phase_goes_on_from_the_one_before(base, tmp_path):
    """32 -> 40 -> 48 px with the recipe's other values; another resolution needs nothing copied by hand."""
    phases = {"fundus-1": (32, 2), "fundus-3a": (40, 4), "fundus-4": (48, 6)}
    before, earlier = [], None
    for recipe, (resolution, steps) in phases.items():
        output = tmp_path / recipe
        flags = ("--recipe", recipe, *SMALL, "--resolution", str(resolution), "--max_train_steps", str(steps))
        assert tune(base, output, *flags, "--lr_warmup_steps", "1", "--lr_scheduler", "linear", *before) == 0
        config = RunDirectory(output).read_config()
        assert (config["recipe"], config["resolution"]) == (recipe, resolution)
        assert config["noise_offset"] == RECIPES[recipe].get("noise_offset", 0)
        lines = list(RunDirectory(output).metrics())
        assert [line["step"] for line in lines] == [steps - 1, steps]
        assert [line["learning_rate"] for line in lines] == pytest.approx([0, 1e-3])  # a warm-up of its own
        if earlier is not None:
            assert 0 < largest_difference(output / "pipeline" / "unet", earlier / "pipeline" / "unet") < 0.01
        before, earlier = ["--resume_from_checkpoint", str(output / f"checkpoint-{steps}")], output


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(not REALDATA.is_dir(), reason="../shared/realdata is not there")
def test_the_miniature_of_the_fundus_recipe_on_photographs(base, tmp_path):
    """The command of docs/finetuning.md at two steps a phase: medsyn-tiny, 128 -> 160 -> 192 px."""
    with (REALDATA / "metadata.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["modality"] == "Fundus"][:8]
    table = tmp_path / "fundus.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "Text", "modality"])
        writer.writerows([REALDATA / row["path"], row["Text"], "Fundus"] for row in rows)
    before = []
    for recipe, resolution, steps in (("fundus-1", 128, 1), ("fundus-3a", 160, 2), ("fundus-4", 192, 3)):
        output = tmp_path / recipe
        flags = (
            *("--recipe", recipe, *SMALL, "--resolution", str(resolution), "--max_train_steps", str(steps)),
            *("--pretrained_model_name_or_path", "medsyn-tiny", "--train_data_dir", str(table)),
            *("--validation_prompts", "Fundus: left eye, no diabetic retinopathy", "--num_validation_images", "1"),
        )
        assert tune(base, output, *flags, *before) == 0
        before = ["--resume_from_checkpoint", str(output / f"checkpoint-{steps}")]
    with Image.open(tmp_path / "fundus-4" / "validation" / "step_3.png") as picture:
        assert picture.size == (192, 192)
        pixels = torch.tensor(list(picture.convert("RGB").get_flattened_data())).float()
    red, _, blue = pixels.mean(0)
    assert red - blue > 20, "a fundus is red"
