"""A tiny ratings CSV with its images, and a tiny text encoder: what a training run starts from."""

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from transformers import BertConfig, BertModel

from generation.diffusion.vocabulary import build_tokenizer
from medsyn.artifacts import file_sha256
from medsyn.modalities import parse_prompt
from ratings.csv_schema import COLUMNS, RatingRow, read_ratings_file, tidy_path, write_ratings

SIZE = 32
PROMPTS = (
    "OCT: drusen under the retina",
    "OCT: macular hole",
    "Chest CT: left lung nodule",
    "Chest CT: clear lungs",
    "Brain MRI: mass in the right hemisphere",
)
SMALL = {"patch_size": 8, "embed_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "pretrained": None}


def draw(prompt: str, grade: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (S, S): a shape for each prompt; the poorer the grade, the darker and the noisier."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    number = PROMPTS.index(prompt)
    picture = 0.2 + 0.6 * ((rows - 0.3 - 0.1 * number) ** 2 + (columns - 0.5) ** 2 < 0.02 * (1 + number))
    picture = picture * {1: 0.4, 2: 0.8, 3: 1.2}[grade]
    noisy = picture + {1: 0.2, 2: 0.1, 3: 0.02}[grade] * rng.normal(size=picture.shape)
    return (noisy.clip(0, 1) * 255).astype(np.uint8)


def write_ratings_file(folder: Path, *, images: int = 30, ratings: int = 2, seed: int = 0) -> Path:
    """ratings.csv and its PNGs; each image has a grade, and a rating in five says another one."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, prompt in zip(range(images), itertools.cycle(PROMPTS), strict=False):
        grade = 1 + number // len(PROMPTS) % 3
        name = f"{number}.png"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(prompt, grade, rng)).save(folder / name)
        for _ in range(ratings):
            given = grade if rng.random() < 0.8 else int(rng.integers(1, 4))
            rows.append(RatingRow(name, given, parse_prompt(prompt).modality, int(rng.integers(1, 4)), prompt))
    return write_rows(folder / "ratings.csv", rows)


def write_rows(path: Path, rows: Sequence[RatingRow]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        write_ratings(file, rows)
    return path


def write_tidy(ratings_file: Path, facts: Sequence[Mapping] = (), *, extra: Sequence[Mapping] = ()) -> Path:
    """The tidy table beside a ratings CSV, whose raters are R-0, R-1, ... in turn over an image's ratings.

    ``facts``: cells of each row that differ from a main rating's; ``extra``: rows beyond those of the CSV, each the
    "like" row's with other cells.
    """
    turns: dict[str, int] = {}
    table = []
    for row in read_ratings_file(ratings_file):
        turn = turns[row.image_path] = turns.get(row.image_path, -1) + 1
        five = {name: getattr(row, name) for name in COLUMNS}
        digest = file_sha256(row.resolve(ratings_file.parent))
        table.append({**five, "state": "submitted", "reader": f"R-{turn}", "image_sha256": digest, "patient": "",
                      "seed": "", "gold_grade": "", "assignment_kind": "main", "occurrence": 1})  # fmt: skip
    for row, cells in zip(table, facts, strict=False):
        row.update(cells)
    table += [{**table[each["like"]], **{name: each[name] for name in each if name != "like"}} for each in extra]
    path = tidy_path(ratings_file)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def write_text_encoder(folder: Path) -> Path:
    """A pipeline folder's text_encoder/ and tokenizer/ with random weights."""
    tokenizer = build_tokenizer(PROMPTS, size=200, max_tokens=24)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def write_config(path: Path, ratings_file: Path, **training) -> Path:
    """A YAML configuration of small networks; ``training`` overrides that section."""
    values = {
        "training": {"max_epochs": 4, "batch_size": 8, **training},
        "data": {"ratings_file": str(ratings_file), "num_workers": 0},
        "synthetic_system": {"image_size": [SIZE, SIZE]},
        "selector": {"architecture": {**SMALL, "head_dim": 8, "ensemble_heads": 3}},
        "policy_model": {"architecture": {**SMALL, "fusion_dim": 16}},
    }
    path.write_text(yaml.safe_dump(values))
    return path
