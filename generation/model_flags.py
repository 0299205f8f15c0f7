"""The flags that say which model draws and how, for every command that draws: generate, evaluate_generator."""

from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.management.base import CommandError
from django.db import DatabaseError

from generation.embedded_model import draws_phantoms
from generation.models import Release
from generation.parameters import PRECISIONS, SCHEDULERS, ParameterError, Parameters
from generation.services import PIPELINE_NAME, active_release
from medsyn.artifacts import ArtifactError, verify_folder

if TYPE_CHECKING:  # torch stays out until a model is loaded: wrong flags and --help need not wait for it
    from generation.diffusion.text_to_image import TextToImage
    from generation.production import ModelChoice, Models

VANILLA_MODEL = "runwayml/stable-diffusion-v1-5"
_DEFAULTS = Parameters()


def add_model_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--release", help="name or digest (its beginning) of a release, instead of the active one")
    parser.add_argument("--pretrained_model", help="pipeline folder or hub id")
    parser.add_argument("--model_used", help="fine-tuned UNet or checkpoint-N folder, put into the model")
    parser.add_argument(
        "--use_pretrained_only", action="store_true", help=f"nothing fine-tuned; alone it means {VANILLA_MODEL}"
    )
    parser.add_argument("--device", default=settings.DEVICE, help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default=_DEFAULTS.precision)


def add_sampling_flags(parser: ArgumentParser) -> None:
    # None where a flag is not given: only then is a model's own recommendation worth a hint.
    steps, guidance = _DEFAULTS.num_inference_steps, _DEFAULTS.guidance_scale
    parser.add_argument("--num_inference_steps", type=int, help=f"denoiser steps per image (default {steps})")
    parser.add_argument("--guidance_scale", type=float, help=f"classifier-free guidance (default {guidance})")
    parser.add_argument(
        "--guidance_interval",
        type=float,
        nargs=2,
        metavar=("START", "END"),
        help="guide only this part of the steps, 0 being pure noise and 1 the finished image; 0.2 0.8 saves a fifth "
        "of the work (default 0 1: all of them)",
    )
    parser.add_argument("--negative_prompt", default=_DEFAULTS.negative_prompt)
    parser.add_argument("--scheduler", choices=SCHEDULERS, default=_DEFAULTS.scheduler)
    parser.add_argument("--height", type=int, help="pixels (default: the model's own)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's own)")
    parser.add_argument("--batch_size", type=int, default=_DEFAULTS.batch_size, help="images denoised together")
    parser.add_argument(
        "--compile", action="store_true", help="compile the UNet first: worth its minute for hundreds of images"
    )


# --- what the flags mean ---


def settle_release(options: dict[str, Any], warn: Callable[[str], None]) -> Release | None:
    """The release that draws, verified; None where a model flag, or else the embedded model, decides."""
    named = options["release"]
    model_flags = [f"--{key}" for key in ("pretrained_model", "model_used", "use_pretrained_only") if options[key]]
    if named and model_flags:
        raise CommandError(f"--release brings its own generator: leave out {', '.join(model_flags)}.")
    if options["use_pretrained_only"] and options["model_used"]:
        raise CommandError("--use_pretrained_only and --model_used contradict each other: leave one out.")
    if model_flags:
        return None
    try:
        release = _find_release(named) if named else active_release()
    except DatabaseError as error:
        if named:
            raise CommandError(
                f"--release needs the database, and it cannot be read ({error}). Run manage.py migrate."
            ) from error
        warn(
            f"The database cannot be read ({error}), so no release is known: the embedded medsyn-tiny draws. "
            "Run manage.py migrate, or name a model with --pretrained_model."
        )
        return None
    if release is not None:
        _verify(release)
        warn(f"Release: {release}")
    return release


def _find_release(named: str) -> Release:
    found = list(Release.objects.filter(digest__startswith=named)) or list(Release.objects.filter(name=named))
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(release.digest[:12] for release in found)
        raise CommandError(f"--release {named} means several releases. Give the digest of one: {choices}.")
    known = ", ".join(str(release) for release in Release.objects.all()[:10]) or "none yet"
    raise CommandError(f"There is no release {named}. Known: {known}.")


def _verify(release: Release) -> None:
    try:
        verify_folder(release.folder)
    except ArtifactError as error:
        raise CommandError(f"Release {release} cannot be used: {error}") from error


def pretrained_model(options: dict[str, Any], release: Release | None) -> str | None:
    """Folder or hub id of the pipeline; None: the embedded medsyn-tiny."""
    if release is not None:
        return str(release.folder / PIPELINE_NAME)
    if options["use_pretrained_only"]:
        return options["pretrained_model"] or VANILLA_MODEL
    return options["pretrained_model"]


def read_parameters(options: dict[str, Any], release: Release | None) -> Parameters:
    given = {field.name: options.get(field.name) for field in fields(Parameters)}  # a command may have fewer flags
    values = {name: value for name, value in given.items() if value is not None}
    if release is not None:
        values.setdefault("quality_threshold", release.quality_threshold)
    try:
        return Parameters.from_mapping(values)
    except ParameterError as error:
        raise CommandError(f"--{error}") from error


def check_whole(flag: str, value: int, smallest: int, largest: int) -> None:
    if not smallest <= value <= largest:
        raise CommandError(f"{flag}: {value} is out of range: a whole number from {smallest} to {largest}.")


def load(choice: "ModelChoice", warn: Callable[[str], None], options: Mapping[str, Any] | None = None) -> "Models":
    """The models of a choice; with a command's ``options`` compiled and advised about as those say."""
    import torch

    from generation.production import load_models

    torch.set_num_threads(settings.TORCH_NUM_THREADS)
    models = load_models(choice)
    warn(f"Model: {models.name} on {models.generator.pipeline.device}")
    if draws_phantoms(models.generator.folder):
        warn("Its images are procedural phantoms, not medical images.")
    if options is not None:
        _advise(models.generator.pipeline, options, warn)
        if options["compile"]:
            _compile(models.generator.pipeline, warn)
    return models


def _advise(pipeline: "TextToImage", options: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    """Name what the model's maker recommends where the flags leave it open."""
    better = {
        name: value
        for name, value in pipeline.recommended_sampling.items()
        if options[name] is None and value != getattr(_DEFAULTS, name)
    }
    if better:
        flags = " ".join(f"--{name} {_as_words(value)}" for name, value in better.items())
        warn(f"Its maker recommends {flags}.")


def _as_words(value: float | Sequence[float]) -> str:
    return " ".join(f"{each:g}" for each in (value if isinstance(value, Sequence) else [value]))


def _compile(pipeline: "TextToImage", warn: Callable[[str], None]) -> None:
    from generation.diffusion.compilation import compile_unet

    warn("Compiling the UNet: the first step of a batch takes up to some minutes, once for each size of batch.")
    warn(compile_unet(pipeline))


@contextmanager
def model_errors() -> Iterator[None]:
    """Say what a model refused in one line, not in a traceback."""
    from generation.diffusion.loading import ModelNotFound
    from generation.scoring.network_file import NetworkFileError

    try:
        yield
    except (ModelNotFound, NetworkFileError, ValueError) as error:
        raise CommandError(str(error)) from error
