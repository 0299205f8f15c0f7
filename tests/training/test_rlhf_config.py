import ast
import json
from pathlib import Path

import pytest
import yaml

from training.rlhf.config import ConfigError, RLHFConfig, from_dict, known_keys, load_config

ROOT = Path(__file__).resolve().parent.parent.parent


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_the_repositorys_file_holds_exactly_the_defaults():
    path = ROOT / "config.yaml"
    assert load_config(path) == RLHFConfig()

    def leaves(values: dict, prefix: str = ""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}"

    assert sorted(leaves(yaml.safe_load(path.read_text()))) == sorted(known_keys())


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4"])
def test_a_float_in_any_notation_is_a_float(tmp_path, text):
    path = write(tmp_path, f"training:\n  stage1:\n    learning_rate: {text}\n")
    assert load_config(path).training.stage1.learning_rate == 0.0001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {stge: 1}", "training.stge is not a key. Did you mean training.stage?"),
        (
            "selector_threshold: 0.3",
            "selector_threshold is not a key. Did you mean training.stage2.selector_threshold?",
        ),
        ("training: {stage: 3}", "training.stage is 3: must be one of 1, 2"),
        ("training: {max_epochs: 0}", "training.max_epochs is 0: must lie between 1 and 100000"),
        ("training: {max_epochs: 2.5}", "must be a whole number"),
        ("training: {max_epochs: true}", "must be a whole number"),
        ("training: {stage1: {learning_rate: fast}}", "training.stage1.learning_rate is 'fast': must be a number"),
        ("training: {stage1: {learning_rate: .nan}}", "must be a finite number"),
        ("training: {stage1: {train_selector: 1}}", "must be true or false"),
        ("training: 3", "training must hold keys, not 3"),
        ("- 1", "the file must hold keys"),
        ("data: {ratings_file: ''}", "must be a text that is not empty"),
        ("data: {augmentation: {contrast_range: [1.2, 0.8]}}", "the smaller factor comes first"),
        ("data: {augmentation: {contrast_range: 1}}", "give a list of 2 numbers"),
        ("raters: {min_expert_level: 3, max_expert_level: 2}", "no rating would remain"),
        ("synthetic_system: {image_size: [256, 128]}", "square"),
        (
            "selector: {architecture: {num_heads: 3}}",
            "selector.architecture.num_heads 3 does not divide embed_dim 128",
        ),
        ("policy_model: {architecture: {patch_size: 24}}", "patch_size 24 does not divide image_size 256"),
        (
            "{policy_model: {architecture: {patch_size: 24}}, synthetic_system: {image_size: [240, 240]}}",
            'patch_size 24 is no power of 2: set policy_model.architecture.stem to "patch"',
        ),
        ("device: {precision: float8}", "must be one of float32, float16, bfloat16"),
        ("training: [", "not valid YAML"),
    ],
)
def test_each_fault_names_its_key_and_the_remedy(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert message in str(caught.value)
    assert "config.yaml" in str(caught.value)


def test_all_faults_come_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "training: {stage: 9, btch_size: 4}\ngeneration: {quality_threshold: 2}\n"))
    assert len(caught.value.faults) == 3


def test_an_empty_file_and_empty_sections_are_the_defaults(tmp_path):
    assert load_config(write(tmp_path, "")) == RLHFConfig()
    assert load_config(write(tmp_path, "training:\ndata:\n")) == RLHFConfig()


def test_through_json_and_back():
    config = from_dict({"training": {"max_epochs": 7}, "synthetic_system": {"image_size": [64, 64]}}, source="test")
    assert from_dict(json.loads(json.dumps(config.to_dict())), source="test") == config


def test_every_key_is_read_by_code():
    """The predecessors' configuration held keys that nothing read."""
    sources = [*(ROOT / "training" / "rlhf").glob("*.py"), *(ROOT / "generation" / "scoring").glob("*.py")]
    read = {
        node.attr
        for path in sources
        if path.name not in ("config.py", "architecture.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    unread = [key for key in known_keys() if key.rsplit(".", 1)[1] not in read]
    assert unread == []
