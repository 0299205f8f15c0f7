"""`manage.py generate`: names, records, the filter, and what it says to wrong flags."""

import json
import re
import shutil

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from PIL import Image

from generation import model_flags
from generation.management.commands import generate
from generation.models import Release
from medsyn.artifacts import file_sha256
from medsyn.imaging import load

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
PROMPT = "Chest X-ray: normal lung fields without infiltrates"


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """Output folders are relative to where the command is called."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(tiny_files):
    """``command("--flag", "value")`` on the tiny generator, two steps, on the CPU."""

    def run(*flags: str, model: bool = True, prompt: str | None = PROMPT) -> None:
        own = ["--pretrained_model", str(tiny_files["pipeline_folder"])] if model else []
        own += ["--prompt", prompt] if prompt else []
        call_command("generate", *own, "--num_inference_steps", "2", "--device", "cpu", *flags)

    return run


@pytest.fixture
def judges(tiny_files) -> list[str]:
    return [
        "--mode",
        "rlhf",
        "--selector_checkpoint",
        str(tiny_files["selector_file"]),
        "--policy_checkpoint",
        str(tiny_files["policy_file"]),
    ]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_baseline_names_seeds_and_records(command, working_directory, capsys):
    command("--seed", "7")
    folder = working_directory / "generated_images"
    assert names(folder) == [f"chest_xray_{i}.{end}" for i in range(3) for end in ("json", "png")]
    facts = [json.loads((folder / f"chest_xray_{i}.json").read_text()) for i in range(3)]
    assert [one["seed"] for one in facts] == [7, 8, 9], "the predecessor drew them all from one seed"
    assert len({Image.open(folder / f"chest_xray_{i}.png").tobytes() for i in range(3)}) == 3
    assert facts[0]["prompt"] == PROMPT
    assert facts[0]["parameters"]["num_inference_steps"] == 2
    assert re.fullmatch("[0-9a-f]{64}", facts[0]["weights_sha256"]["generator"])
    assert "chest_xray_2.png" in capsys.readouterr().out


def test_the_guidance_interval_and_the_evaluations_are_recorded(command, working_directory):
    flags = ("--seed", "7", "--img_num", "1", "--guidance_interval", "0.5", "1")
    command(*flags)
    facts = json.loads((working_directory / "generated_images" / "chest_xray_0.json").read_text())
    assert facts["parameters"]["guidance_interval"] == [0.5, 1]
    assert facts["unet_evaluations"] == 3, "two steps, of which the second is guided"
    with pytest.raises(CommandError, match="--guidance_interval: starts at 0.8 and ends at 0.2"):
        command("--guidance_interval", "0.8", "0.2")


def test_a_prompt_that_is_too_long_is_quoted_where_it_was_cut(command, working_directory, caplog):
    command("--img_num", "1", prompt="Chest CT: " + "effusion " * 40 + "and a final remark")
    facts = json.loads((working_directory / "generated_images" / "chest_ct_0.json").read_text())
    assert facts["prompt_cut"].endswith("and a final remark")
    (record,) = [one for one in caplog.records if "cut off" in one.getMessage()]
    assert record.levelname == "WARNING" and facts["prompt_cut"] in record.getMessage()


def test_what_the_models_maker_recommends_is_named_where_no_flag_decides(command, tiny_files, tmp_path, capsys):
    folder = tmp_path / "advised"
    shutil.copytree(tiny_files["pipeline_folder"], folder)
    index = folder / "model_index.json"
    advice = {"recommended_steps": 2, "recommended_guidance": 3.0, "recommended_guidance_interval": [0.3, 1]}
    index.write_text(json.dumps(json.loads(index.read_text()) | advice))
    model = ("--pretrained_model", str(folder), "--img_num", "1")
    command(*model, model=False)
    assert "recommends --guidance_scale 3 --guidance_interval 0.3 1." in capsys.readouterr().err, "steps were given"
    command(*model, "--guidance_scale", "7.5", "--guidance_interval", "0", "1", model=False)
    assert "recommends" not in capsys.readouterr().err


def test_without_a_compiler_it_says_so_and_draws(command, working_directory, monkeypatch, capsys):
    import torch

    def no_compiler(function):
        raise RuntimeError("No working C++ compiler found.\nSee the manual.")

    monkeypatch.setattr(torch, "compile", no_compiler)
    command("--img_num", "1", "--compile")
    said = capsys.readouterr().err
    assert "not compiled, and draws as without --compile: No working C++ compiler found." in said
    assert names(working_directory / "generated_images") == ["chest_xray_0.json", "chest_xray_0.png"]


def test_a_second_call_goes_on_numbering_and_overwrites_nothing(command, working_directory):
    command("--seed", "7", "--img_num", "2")
    first = (working_directory / "generated_images" / "chest_xray_0.png").read_bytes()
    command("--seed", "7", "--img_num", "1")
    folder = working_directory / "generated_images"
    assert (folder / "chest_xray_0.png").read_bytes() == first
    assert Image.open(folder / "chest_xray_2.png").tobytes() == Image.open(folder / "chest_xray_0.png").tobytes()
    assert not (folder / "chest_xray_3.png").exists()


def test_dicom_files_hold_the_pixels_that_png_files_hold(command, working_directory):
    command("--seed", "7", "--img_num", "2", "--output_dir", "png")
    command("--seed", "7", "--img_num", "2", "--output_dir", "dicom", "--format", "dicom")
    assert names(working_directory / "dicom") == [
        f"chest_xray_{i}.{end}" for i in range(2) for end in ("dcm", "json")
    ]
    for number in range(2):
        dicom = working_directory / "dicom" / f"chest_xray_{number}.dcm"
        png = working_directory / "png" / f"chest_xray_{number}.png"
        assert np.array_equal(load(dicom).to_rgb(), load(png).to_rgb())
        facts = json.loads(dicom.with_suffix(".json").read_text())
        assert (facts["seed"], facts["sha256"]) == (7 + number, file_sha256(dicom))
        assert facts["png_sha256"] == file_sha256(png)


def test_prompts_from_a_file_each_with_its_own_names(command, working_directory):
    (working_directory / "prompts.txt").write_text("Fundus: no abnormality, right eye\n\nBrain MRI: left mass, T2\n")
    command("--prompts_file", "prompts.txt", "--img_num", "2", "--output_dir", "out", prompt=None)
    images = [name for name in names(working_directory / "out") if name.endswith(".png")]
    assert images == ["brain_mri_0.png", "brain_mri_1.png", "fundus_0.png", "fundus_1.png"]


def test_rlhf_names_hold_the_scores_and_records_the_attempts(command, judges, working_directory):
    command(*judges, "--quality_threshold", "0", "--img_num", "2", "--seed", "0", prompt="Brain MRI: left mass, T2")
    folder = working_directory / "generated_rlhf"
    images = [name for name in names(folder) if name.endswith(".png")]
    assert len(images) == 2
    for number, name in enumerate(images, start=1):
        selector, policy = re.fullmatch(
            rf"Brain_MRI_{number}_selector_(0\.\d\d)_policy_(0\.\d\d)\.png", name
        ).groups()
        facts = json.loads((folder / name.replace(".png", ".json")).read_text())
        assert f"{facts['scores']['selector']:.2f}" == selector
        assert f"{facts['scores']['policy']:.2f}" == policy
        assert [one["accepted"] for one in facts["attempts"]] == [True]
    lines = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 30]


def test_when_nothing_passes_it_says_so_and_writes_no_image(command, judges, working_directory):
    with pytest.raises(CommandError, match=r"1 of 1 images found no candidate.*2 attempts of 2 \(4 candidates"):
        command(
            *judges, "--quality_threshold", "0.99", "--max_attempts", "2", "--num_candidates", "2", "--img_num", "1"
        )
    folder = working_directory / "generated_rlhf"
    assert names(folder) == ["attempts.jsonl"]
    lines = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    assert [line["attempt"] for line in lines] == [1, 1, 2, 2]
    assert not any(line["accepted"] for line in lines)


def test_the_active_release_draws_and_filters(command, tiny_release, working_directory, capsys):
    Release.objects.update(quality_threshold=0.0)
    command("--mode", "rlhf", "--img_num", "1", model=False)
    (facts,) = [json.loads(path.read_text()) for path in (working_directory / "generated_rlhf").glob("*.json")]
    assert facts["model"] == str(tiny_release)
    assert facts["weights_sha256"]["selector"] == tiny_release.selector_sha256
    assert facts["parameters"]["quality_threshold"] == 0.0, "the release's own"
    assert f"Release: {tiny_release}" in capsys.readouterr().err
    command("--release", tiny_release.digest[:10], "--img_num", "1", "--output_dir", "named", model=False)
    assert (working_directory / "named" / "chest_xray_0.png").exists()


def test_a_model_that_is_not_there_is_an_error_and_never_another_model(command, working_directory):
    with pytest.raises(CommandError, match="nowhere.*embedded model"):
        command("--pretrained_model", str(working_directory / "nowhere"))
    assert names(working_directory) == []


def test_a_checkpoint_of_another_architecture_is_refused(command, tiny_files, working_directory):
    shutil.copytree(tiny_files["pipeline_folder"] / "unet", working_directory / "checkpoint-5" / "unet")
    path = working_directory / "checkpoint-5" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_per_block": 3}))
    with pytest.raises(CommandError, match="another architecture.*layers_per_block"):
        command("--model_used", str(working_directory / "checkpoint-5"))


def test_a_checkpoint_is_put_into_the_model(command, tiny_files, working_directory):
    shutil.copytree(tiny_files["pipeline_folder"] / "unet", working_directory / "checkpoint-5" / "unet")
    command("--model_used", str(working_directory / "checkpoint-5"), "--img_num", "1")
    facts = json.loads((working_directory / "generated_images" / "chest_xray_0.json").read_text())
    assert facts["model"] == "pipeline + checkpoint-5"


def test_swapped_checkpoints_are_refused(command, tiny_files):
    selector, policy = str(tiny_files["selector_file"]), str(tiny_files["policy_file"])
    with pytest.raises(CommandError, match="not a selector"):
        command("--mode", "rlhf", "--selector_checkpoint", policy, "--policy_checkpoint", selector)


def test_without_a_database_it_says_which_model_draws(monkeypatch, capsys):
    def no_table():
        raise OperationalError("no such table: generation_release")

    monkeypatch.setattr(model_flags, "active_release", no_table)
    reached = []
    monkeypatch.setattr(generate, "load", lambda choice, *_: reached.append(choice))
    monkeypatch.setattr(generate.Command, "_produce", lambda self, *_: None)
    call_command("generate", "--prompt", PROMPT)
    assert "no such table" in capsys.readouterr().err
    assert reached[0].source.pretrained_model is None, "medsyn-tiny, and it was said"


def test_use_pretrained_only_means_the_vanilla_model(monkeypatch):
    reached = []
    monkeypatch.setattr(generate, "load", lambda choice, *_: reached.append(choice))
    monkeypatch.setattr(generate.Command, "_produce", lambda self, *_: None)
    call_command("generate", "--prompt", PROMPT, "--use_pretrained_only")
    call_command("generate", "--prompt", PROMPT, "--use_pretrained_only", "--pretrained_model", "some/other")
    names_asked = [choice.source.pretrained_model for choice in reached]
    assert names_asked == ["runwayml/stable-diffusion-v1-5", "some/other"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "either --prompt or --prompts_file"),
        (["--prompt", "normal lung fields"], "no prefix.*Chest X-ray:.*--modality"),
        (["--prompt", "Knee photo: normal"], "unknown prefix"),
        (["--prompt", PROMPT, "--modality", "Knee photo"], "--modality: Unknown modality.*Known: OCT"),
        (["--prompt", PROMPT, "--modality", "Fundus"], "the prompt says Chest X-ray, --modality says Fundus"),
        (["--prompts_file", "absent.txt"], "absent.txt cannot be read"),
        (["--prompts_file", "empty.txt"], "holds no prompt"),
        (["--prompts_file", "wrong.txt"], "wrong.txt, line 2: .*no prefix"),
        (["--prompt", PROMPT, "--img_num", "0"], "--img_num: 0 is out of range"),
        (["--prompt", PROMPT, "--seed", "-1"], "--seed: -1 is out of range"),
        (["--prompt", PROMPT, "--num_inference_steps", "0"], "--num_inference_steps: 0 is out of range"),
        (["--prompt", PROMPT, "--quality_threshold", "1.5"], "--quality_threshold: 1.5 is out of range"),
        (["--prompt", PROMPT, "--height", "100"], "--height: 100 is not a multiple of 8"),
        (["--prompt", PROMPT, "--scheduler", "heun"], "scheduler"),
        (["--prompt", PROMPT, "--mode", "rlhf"], "Missing: --selector_checkpoint and --policy_checkpoint"),
        (["--prompt", PROMPT, "--mode", "rlhf", "--selector_checkpoint", "s"], "Missing: --policy_checkpoint"),
        (["--prompt", PROMPT, "--selector_checkpoint", "s"], "add --mode rlhf"),
        (["--prompt", PROMPT, "--release", "nine"], "no release nine. Known: none yet"),
        (["--prompt", PROMPT, "--release", "r", "--pretrained_model", "m"], "leave out --pretrained_model"),
        (["--prompt", PROMPT, "--use_pretrained_only", "--model_used", "m"], "contradict"),
    ],
)
def test_wrong_flags_are_refused_before_a_model_is_loaded(flags, message, working_directory, monkeypatch):
    monkeypatch.setattr(generate, "load", lambda choice, *_: pytest.fail("a model was loaded"))
    (working_directory / "empty.txt").write_text("\n \n")
    (working_directory / "wrong.txt").write_text(f"{PROMPT}\nnormal\n")
    with pytest.raises(CommandError, match=message):
        call_command("generate", *flags)


def test_modality_supplies_a_missing_prefix(command, working_directory):
    command("--modality", "CXR", "--img_num", "1", prompt="normal lung fields")
    facts = json.loads((working_directory / "generated_images" / "chest_xray_0.json").read_text())
    assert facts["prompt"] == "Chest X-ray: normal lung fields"


def test_a_folder_that_cannot_be_written_to_is_named(command, working_directory):
    (working_directory / "taken").write_text("")
    with pytest.raises(CommandError, match="Cannot write to taken"):
        command("--output_dir", "taken", "--img_num", "1")
