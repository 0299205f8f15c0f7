"""From a name to a generator that is ready to draw: pipeline folders, hub models, fine-tuned parts put in.

What was asked for is loaded, or an error says what is missing and how to provide it; no other model takes its place.
Weights are read from safetensors only.
"""

import contextlib
import inspect
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2  # what huggingface_hub speaks HTTP with
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import constants as hub
from PIL import Image
from torch import nn
from transformers.utils import logging as transformers_logging

from generation.diffusion import lora
from generation.diffusion.pipeline import MedSynPipeline
from generation.diffusion.precision import choose_precision, lay_out
from generation.diffusion.stable_diffusion import PromptedStableDiffusion
from generation.diffusion.text_to_image import TextToImage
from generation.embedded_model import EMBEDDED_MODEL_DIR
from medsyn.artifacts import digest_of, file_sha256

logger = logging.getLogger(__name__)

DEFAULT_MODEL_DIR = EMBEDDED_MODEL_DIR

_INDEX_NAME = "model_index.json"
_CONFIG_NAME = "config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_USE_EMBEDDED = f"To use the embedded model {DEFAULT_MODEL_DIR.name} instead, name no model."
_EMA_SUFFIX = "_ema"  # a checkpoint's moving averages: what its run's finished pipeline would hold
_PARTS = ("unet", "conditioner", "text_encoder", "tokenizer", "scheduler")  # what a checkpoint may hold
# Says where and with what a config was written, or the size trained at: not what the network looks like.
_NOT_ARCHITECTURE = frozenset({"_class_name", "_diffusers_version", "_name_or_path", "sample_size"})


class ModelNotFound(RuntimeError):
    """A model, or a part of it, is not there. The message names the folder to fill and the embedded model."""


class ModelMismatch(ValueError):
    """A model or checkpoint is there, but cannot be used here: another class or another architecture."""


@dataclass(frozen=True)
class ModelSource:
    """Which generator is wanted."""

    pretrained_model: str | None = None  # pipeline folder or hub id; None: the embedded model
    model_used: str | None = None  # folder whose fine-tuned parts are put in: a UNet folder, or one with unet/


@dataclass(frozen=True)
class LoadedGenerator:
    """A pipeline with what its images' records need."""

    pipeline: TextToImage
    name: str  # for people: folder name or hub id, and the checkpoint put in
    weights_sha256: str  # of all weight files in use
    folder: Path  # of the pipeline; for a hub id its place in the cache
    text_encoder_folder: Path  # of the text encoder in use: the pipeline's, or one put in

    def exact_text_encoder(self) -> nn.Module:
        """The text encoder with the numbers that lie on the disk: the pipeline's own, but where it was loaded in
        bfloat16, which keeps fewer digits of them, a float32 copy."""
        loaded = self.pipeline.text_encoder
        if loaded.dtype != torch.bfloat16:
            return loaded
        with quiet_loading():
            return type(loaded).from_pretrained(self.text_encoder_folder, dtype=torch.float32)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], **parameters: Any) -> list[Image.Image]:
        """One image for each prompt and seed, in one batch; a seed makes the same image in any batch.

        ``parameters`` are those of TextToImage.__call__. Raises PromptError, and ValueError for sizes or names that
        do not fit the model.
        """
        return self.pipeline(list(prompts), seeds=seeds, **parameters)


# --- loading ---


def load_generator(source: ModelSource, *, device: str = "auto", precision: str = "float32") -> LoadedGenerator:
    """Load a generator and move it to ``device`` ("auto", "cpu" or "cuda:N").

    Raises ModelNotFound for what is missing, ModelMismatch for what does not fit, ValueError for a device or
    precision that is not to be had.
    """
    target = choose_device(device)
    dtype = choose_precision(precision, target)
    name = source.pretrained_model or str(DEFAULT_MODEL_DIR)
    folder = _pipeline_folder(name)
    label = folder.name if Path(name).is_dir() else name
    with quiet_loading():
        pipeline = _load_pipeline(folder, dtype)
        origins = {part: folder / part for part in _network_names(pipeline)}
        if source.model_used is not None:
            parts_folder = Path(source.model_used)
            adapter = _adapter_for(pipeline, parts_folder, _weights_sha256(origins))
            pipeline, replaced = _put_in(pipeline, parts_folder, adapter, dtype)
            origins |= replaced
            label = f"{label} + {parts_folder.name}"
    pipeline.set_progress_bar_config(disable=True)
    lay_out(pipeline)
    text_encoder = origins.get("text_encoder", folder / "text_encoder")
    return LoadedGenerator(pipeline.to(target), label, _weights_sha256(origins), folder, text_encoder)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No bars for parts that load in no time, no report about BERT's pooler, which no pipeline here has."""
    verbosity, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()
            diffusers_logging.enable_progress_bar()


def choose_device(name: str) -> torch.device:
    """The device that ``name`` means here; "auto" is the first GPU, else the CPU. Raises ValueError."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"Unknown device {name!r}. Use auto, cpu or cuda:N.")
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"Device {name} is not there: this machine offers {count} CUDA devices. Use auto or cpu.")
    return device


def _pipeline_folder(name: str) -> Path:
    """The folder of a pipeline: given as such, or a hub id in the cache, downloaded into it where that is allowed."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / _INDEX_NAME).is_file():
            raise ModelNotFound(
                f"{folder} holds no pipeline: {_INDEX_NAME} is missing. Fill this folder with a MedSynPipeline or "
                f"StableDiffusionPipeline as diffusers saves them. {_USE_EMBEDDED}"
            )
        return folder
    if not _HUB_ID.fullmatch(name):
        raise ModelNotFound(f"There is no model folder {name}. Put a pipeline there. {_USE_EMBEDDED}")
    return _hub_folder(name)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids downloads.

    Both are read now, not when the libraries were imported: a worker's environment may differ.
    """
    values = (os.environ.get(variable, "") for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.strip().upper() in hub.ENV_VARS_TRUE_VALUES for value in values)


def _hub_folder(name: str) -> Path:
    offline = is_offline()
    try:
        return Path(DiffusionPipeline.download(name, local_files_only=offline, use_safetensors=True))
    except (OSError, ValueError, httpx2.HTTPError) as error:
        cache = Path(hub.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
        reason = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids downloading it" if offline else str(error)
        raise ModelNotFound(
            f"The model {name} is neither a folder here nor in the cache folder {cache} ({reason}). Download it on a "
            f"machine with access and fill that cache folder, or save it to any folder and name that. {_USE_EMBEDDED}"
        ) from error


def _load_pipeline(folder: Path, dtype: torch.dtype) -> TextToImage:
    class_name = _read_json(folder / _INDEX_NAME).get("_class_name")
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    try:
        if class_name == MedSynPipeline.__name__:
            return MedSynPipeline.from_pretrained(folder, **options)
        if class_name == StableDiffusionPipeline.__name__:
            # Its safety checker was trained on photographs and blackens medical images.
            unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            return PromptedStableDiffusion.from_pretrained(folder, **unchecked, **options)
    except OSError as error:
        raise ModelNotFound(f"The pipeline in {folder} is incomplete: {error} {_USE_EMBEDDED}") from error
    raise ModelMismatch(
        f"{folder / _INDEX_NAME} names the class {class_name}; only {MedSynPipeline.__name__} and "
        f"{StableDiffusionPipeline.__name__} can be loaded."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ModelMismatch(f"{path} is not valid JSON ({error}). Restore it from its source.") from None


# --- fine-tuned parts ---


def _put_in(
    pipeline: TextToImage, folder: Path, adapter: lora.Adapter | None, dtype: torch.dtype
) -> tuple[TextToImage, dict[str, Path]]:
    """The pipeline with every part that ``folder`` has of its own, and where those parts' weights lie.

    A checkpoint's UNet learnt with the checkpoint's text encoder, conditioner, tokenizer and prediction type: they
    come along. An adapter is merged into the parts that it changes.
    """
    places = _places_of_parts(pipeline, folder, has_adapter=adapter is not None)
    parts: dict[str, Any] = {}
    if adapter is None:
        _check_architecture(pipeline.unet, places["unet"])
    else:
        try:
            lora.merge_into(pipeline.components, adapter)
        except lora.AdapterError as error:
            raise ModelMismatch(f"{folder} does not fit the model it is put into. {error}") from error
    for name, place in places.items():
        part_class = type(getattr(pipeline, name))
        options = {"dtype": dtype, "use_safetensors": True} if name in _network_names(pipeline) else {}
        try:
            parts[name] = part_class.from_pretrained(place, local_files_only=True, **options)
        except OSError as error:
            raise ModelNotFound(f"The checkpoint's {place} is incomplete: {error}") from error
        except (ValueError, RuntimeError) as error:  # tensors of other shapes than the config promises
            raise ModelMismatch(f"The weights in {place} do not fit their config: {error}") from error
    try:
        whole = type(pipeline)(**_constructor_arguments(pipeline, parts))
    except ValueError as error:
        raise ModelMismatch(f"{folder} does not fit the pipeline it is put into. {error}") from error
    origins = {name: place for name, place in places.items() if name in _network_names(pipeline)}
    return whole, origins | ({lora.FOLDER_NAME: _averaged_or_raw(folder, lora.FOLDER_NAME)} if adapter else {})


def _adapter_for(pipeline: TextToImage, folder: Path, weights_sha256: str) -> lora.Adapter | None:
    """The checkpoint's adapter, where it holds one; it must have been trained on these very weights."""
    place = _averaged_or_raw(folder, lora.FOLDER_NAME)
    if place is None:
        return None
    try:
        adapter = lora.Adapter.read(place)
    except lora.AdapterError as error:
        raise ModelMismatch(str(error)) from error
    if adapter.base_weights_sha256 != weights_sha256:
        raise ModelMismatch(
            f"The adapter in {place} was trained on another model: on weights with the digest "
            f"{adapter.base_weights_sha256[:12]}, while these have {weights_sha256[:12]}. Name the model that it was "
            "fine-tuned from with --pretrained_model."
        )
    return adapter


def _averaged_or_raw(folder: Path, name: str) -> Path | None:
    """Where a checkpoint keeps a part: averages before raw weights."""
    candidates = [folder / f"{name}{_EMA_SUFFIX}", folder / name]
    return next((place for place in candidates if place.is_dir()), None)


def _places_of_parts(pipeline: DiffusionPipeline, folder: Path, *, has_adapter: bool) -> dict[str, Path]:
    """Folder by name of the part, a bare UNet folder as it is."""
    if not folder.is_dir():
        raise ModelNotFound(f"There is no checkpoint folder {folder}. Name a folder with unet/, or a UNet's own.")
    if not (folder / "unet").is_dir() and (folder / _CONFIG_NAME).is_file():
        return {"unet": folder}
    found = {name: _averaged_or_raw(folder, name) for name in _PARTS if name in pipeline.components}
    places = {name: place for name, place in found.items() if place is not None}
    if "unet" not in places and not has_adapter:
        raise ModelNotFound(
            f"{folder} is no checkpoint: it has neither unet/ nor a UNet's {_CONFIG_NAME}, nor {lora.FOLDER_NAME}/."
        )
    return places


def _check_architecture(unet: UNet2DConditionModel, place: Path) -> None:
    path = place / _CONFIG_NAME
    if not path.is_file():
        raise ModelNotFound(f"{place} is no UNet folder: {_CONFIG_NAME} is missing.")
    ours, theirs = _full_unet_config(dict(unet.config)), _full_unet_config(_read_json(path))
    different = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if different:
        listed = "; ".join(f"{key}: {ours.get(key)} in the model, {theirs.get(key)} there" for key in different)
        raise ModelMismatch(
            f"The UNet in {place} is of another architecture than the model it is put into ({listed}). Name the "
            "model that it was fine-tuned from with --pretrained_model."
        )


def _full_unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every constructor argument of the UNet with its value, left-out ones by their default, tuples as lists."""
    signature = inspect.signature(UNet2DConditionModel.__init__).parameters
    defaults = {name: parameter.default for name, parameter in signature.items() if name != "self"}
    values = defaults | {key: config[key] for key in config if key in defaults}
    return {key: _as_list(value) for key, value in values.items() if key not in _NOT_ARCHITECTURE}


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _constructor_arguments(pipeline: DiffusionPipeline, parts: Mapping[str, Any]) -> dict[str, Any]:
    """What the pipeline was made from, with some parts exchanged."""
    names = set(inspect.signature(type(pipeline).__init__).parameters) - {"self"}
    settings = {name: pipeline.config[name] for name in names - set(pipeline.components) if name in pipeline.config}
    return {**settings, **{name: pipeline.components[name] for name in names & set(pipeline.components)}, **parts}


# --- digest ---


def _network_names(pipeline: DiffusionPipeline) -> list[str]:
    return [name for name, part in pipeline.components.items() if isinstance(part, nn.Module)]


def _weights_sha256(origins: Mapping[str, Path]) -> str:
    """One digest of the weight files of all networks in use, whatever folder they came from."""
    return digest_of(
        {name: {file.name: file_sha256(file) for file in sorted(place.glob("*.safetensors"))}
         for name, place in origins.items()}
    )  # fmt: skip
