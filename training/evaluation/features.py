"""Frozen networks that turn images into features, and captions into features of the generator's text encoder."""

import pickle  # noqa: TID251 (the name of its error only)
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from generation.diffusion.text_to_image import TextToImage
from generation.scoring.architecture import ENCODER_NAME, VisionArchitecture
from generation.scoring.encoder import ENCODER_FILE, build_encoder, encode, load_pretrained, prepare
from generation.scoring.network_file import read_network
from medsyn.artifacts import file_sha256
from training.evaluation.images import EvaluationError

_BATCH = 32  # images encoded at a time
_ENCODER_SIZE = 128  # pixels; the size medsyn-encoder was trained at


@dataclass(frozen=True)
class FrozenEncoder:
    """A network whose weights nobody changes during an evaluation."""

    name: str  # stands beside every figure that was taken with it
    weights_sha256: str
    size: int  # pixels, the side of the square it reads
    read: Callable[[Tensor], Tensor]  # float32 (B, 3, H, W) in [0, 1] -> (B, D)


def medsyn_encoder() -> FrozenEncoder:
    """The repository's own encoder (trained on phantoms alone): the mean of its tokens, D = 128."""
    config, _ = read_network(ENCODER_FILE, role="encoder")
    network = build_encoder(VisionArchitecture(**config), _ENCODER_SIZE).eval()
    load_pretrained(network, ENCODER_NAME)
    return FrozenEncoder(
        ENCODER_NAME,
        file_sha256(ENCODER_FILE),
        _ENCODER_SIZE,
        lambda images: encode(network, prepare(images, _ENCODER_SIZE)).mean(1),
    )


def timm_encoder(name: str, weights: Path) -> FrozenEncoder:
    """A timm network with weights from ``weights`` (safetensors or PyTorch state dict); raises EvaluationError.

    Images are read at the network's own size, mean and deviation. Its classifier is left out.
    """
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "see timm.list_models()"
        raise EvaluationError(f"--encoder: timm knows no network {name!r}. Near it: {near}.")
    network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    own, state = network.state_dict(), read_state(weights)
    missing = [key for key in own if key not in state or state[key].shape != own[key].shape]
    if missing:
        raise EvaluationError(f"{weights} does not fit timm's {name} (first misfit: {missing[0]}). Name its network.")
    network.load_state_dict({key: state[key] for key in own})
    data = resolve_model_data_config(network)
    size = data["input_size"][-1]
    mean, std = (torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return FrozenEncoder(
        name, file_sha256(weights), size, lambda images: network((prepare(images, size) - mean) / std)
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a PyTorch state dict; raises EvaluationError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 (weights only)
    except FileNotFoundError:
        raise EvaluationError(f"There is no file {path}. Put the weights there, or name another file.") from None
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise EvaluationError(f"{path} holds no weights that can be read safely ({reason}).") from None
    if not isinstance(state, dict):
        raise EvaluationError(f"{path} holds a {type(state).__name__}, not a state dict. Save the state dict.")
    return state.get("state_dict", state)


@torch.inference_mode()
def embed(encoder: FrozenEncoder, pixels: Tensor, *, title: str = "") -> np.ndarray:
    """Features (N, D) float64 of uint8 images (N, 3, H, W); a bar where ``title`` names the work."""
    parts = tqdm(pixels.split(_BATCH), desc=title, unit="batch", leave=False, disable=None if title else True)
    return torch.cat([encoder.read(part.float() / 255).float() for part in parts]).double().numpy()


@torch.inference_mode()
def caption_features(pipeline: TextToImage, captions: Sequence[str]) -> np.ndarray:
    """(P, D_text): mean of the text encoder's tokens, padding left out."""
    parts = []
    for start in range(0, len(captions), _BATCH):
        text = pipeline.encode_text(list(captions[start : start + _BATCH]))
        weights = F.normalize(text.mask.float(), p=1, dim=1)[..., None]
        parts.append((text.tokens.float() * weights).sum(1).cpu())
    return torch.cat(parts).double().numpy()
