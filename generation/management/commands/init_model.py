"""`manage.py init_model`: a new generator of a preset's shape, its weights random, ready to be trained."""

import csv
import dataclasses
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from medsyn.artifacts import atomic_folder, file_sha256

if TYPE_CHECKING:  # torch stays out until a model is built: wrong flags and --help need not wait for it
    from generation.diffusion.pipeline import MedSynPipeline
    from generation.diffusion.presets import ModelPreset, TextParts

PRESET_NAMES = ("medsyn-base", "medsyn-small", "medsyn-tiny", "test")
PRECISION_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # per parameter


class Command(BaseCommand):
    help = (
        "Make a new generator: a pipeline folder of a preset's shape whose weights are random. Train its autoencoder "
        "with python -m training.finetuning.train_vae, then the rest with manage.py finetune."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--preset", required=True, choices=PRESET_NAMES, help="the shape of the model")
        parser.add_argument("--output_dir", "--output-dir", required=True, type=Path, help="folder to make")
        parser.add_argument("--seed", type=int, default=0, help="decides the random weights")
        parser.add_argument(
            "--precision", choices=PRECISION_BYTES, default="float32", help="type of the weights on disk"
        )
        parser.add_argument(
            "--text_encoder", "--text-encoder", type=Path, metavar="DIR",
            help="a BERT with its tokenizer (medsyn-base without it: BiomedBERT from the hub's cache)",
        )  # fmt: skip
        parser.add_argument(
            "--vae",
            type=Path,
            metavar="DIR",
            help="an AutoencoderKL, or a pipeline with one, of any scale factor",
        )
        parser.add_argument(
            "--captions", type=Path, metavar="CSV",
            help="dataset whose captions the vocabulary is learnt from (default: those of the phantoms)",
        )  # fmt: skip
        parser.add_argument("--caption_column", "--caption-column", default="Text", help="its column of the captions")

    def handle(self, **options: Any) -> None:
        output_dir: Path = options["output_dir"]
        if output_dir.exists():
            raise CommandError(f"--output_dir {output_dir} exists already. Name a folder that does not.")
        if options["seed"] < 0:
            raise CommandError(f"--seed {options['seed']} is negative: it must be a whole number from 0.")
        captions = _read_captions(options["captions"], options["caption_column"]) if options["captions"] else None
        pipeline = _build(options, captions)
        self._print_table(pipeline, PRECISION_BYTES[options["precision"]])
        _write(pipeline, output_dir, options)
        self.stdout.write(f"Written to {output_dir}.")

    def _print_table(self, pipeline: "MedSynPipeline", bytes_each: int) -> None:
        """Parameters and size on disk of every part, then what image, latent and text are."""
        counts = {
            name: sum(parameter.numel() for parameter in getattr(pipeline, name).parameters())
            for name in ("vae", "text_encoder", "conditioner", "unet")
        }
        counts["together"] = sum(counts.values())
        self.stdout.write(f"{'part':<14}{'parameters':>14}{'MB':>10}")
        for name, count in counts.items():
            self.stdout.write(f"{name:<14}{count:>14,}{count * bytes_each / 1e6:>10,.1f}")
        size, factor = pipeline.image_size, pipeline.vae_scale_factor
        side, channels = size // factor, pipeline.vae.config.latent_channels
        self.stdout.write(
            f"Image {size}x{size}x{pipeline.vae.config.in_channels}, latent {side}x{side}x{channels} (f={factor}); "
            f"text of at most {pipeline.max_tokens} tokens from {len(pipeline.tokenizer):,} word pieces, "
            f"{pipeline.text_encoder.config.hidden_size} wide -> {pipeline.conditioner.config.condition_width}."
        )


def _build(options: dict[str, Any], captions: list[str] | None) -> "MedSynPipeline":
    import torch

    from generation.diffusion.loading import ModelMismatch, ModelNotFound
    from generation.diffusion.phantoms import all_captions
    from generation.diffusion.presets import PRESETS, build_pipeline
    from generation.diffusion.pretrained_parts import load_autoencoder

    torch.set_num_threads(settings.TORCH_NUM_THREADS)
    # A new model has drawn nothing yet, phantoms least of all.
    preset = dataclasses.replace(PRESETS[options["preset"]], draws_phantoms=False)
    try:
        text = _text_parts(preset, options["text_encoder"])
        if text is not None and captions is not None:
            raise CommandError("--captions is for a vocabulary of the model's own: the text encoder brings another.")
        vae = load_autoencoder(options["vae"]) if options["vae"] else None
        return build_pipeline(
            preset,
            captions_for_vocabulary=all_captions() if captions is None else captions,
            seed=options["seed"],
            text=text,
            vae=vae,
        )
    except (ModelNotFound, ModelMismatch, ValueError) as error:
        raise CommandError(str(error)) from error


def _text_parts(preset: "ModelPreset", folder: Path | None) -> "TextParts | None":
    """The text encoder to build with; None where the preset has one of its own and no other is named."""
    from generation.diffusion.pretrained_parts import load_text_parts

    if folder is None and preset.own_text is not None:
        return None
    return load_text_parts(folder, max_tokens=preset.max_tokens)


def _read_captions(path: Path, column: str) -> list[str]:
    """The captions of a dataset CSV, in its order."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if column not in (rows.fieldnames or ()):
                raise CommandError(
                    f"--captions {path} has no column {column!r}; its first line reads: "
                    f"{','.join(rows.fieldnames or ())}. Name the column with --caption_column."
                )
            captions = [row[column].strip() for row in rows if row[column]]
    except OSError as error:
        raise CommandError(f"--captions {path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CommandError(f"--captions {path} is no CSV of UTF-8 text: {error}.") from error
    if not captions:
        raise CommandError(f"--captions {path} holds no caption below its first line.")
    return captions


def _write(pipeline: "MedSynPipeline", folder: Path, options: dict[str, Any]) -> None:
    """The pipeline in the wanted precision; the folder appears whole or not at all."""
    from generation.diffusion.loading import quiet_loading

    for network in (pipeline.vae, pipeline.text_encoder, pipeline.conditioner, pipeline.unet):
        if options["precision"] == "float16":
            network.half()
        elif options["precision"] == "bfloat16":
            network.bfloat16()
    origin = {
        "preset": options["preset"],
        "seed": options["seed"],
        "text_encoder": str(options["text_encoder"] or "") or None,
        "vae": str(options["vae"] or "") or None,
        "captions_sha256": file_sha256(options["captions"]) if options["captions"] else None,
    }
    with quiet_loading(), atomic_folder(folder, **origin) as temporary:
        pipeline.save_pretrained(temporary)
