"""The policy: pi(accept | image, prompt), read as an alignment score.

Image tokens come from a vision transformer, text tokens from the generator's own text encoder. Text looks at the
image by cross-attention; beside it stands the cosine of the two pooled projections, as in CLIP. A small network
turns both into the logit of accepting.
"""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generation.scoring.architecture import PolicyArchitecture
from generation.scoring.encoder import build_encoder, encode, encoder_file, load_pretrained, prepare
from generation.scoring.network_file import NetworkFileError, fill, read_network, save_network

FUSION_FILE_NAME = "fusion.safetensors"  # beside the encoder's weights


def text_encoder_sha256(text_encoder: nn.Module) -> str:
    """Digest of a text encoder's parameters, in half precision: the same for float16 and float32 loads.

    A pooler is left out: the tokens do not pass it, and loaders invent a random one where the file has none.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(text_encoder.named_parameters()):
        if name.startswith("pooler."):
            continue
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class PolicyConfig:
    image_size: int  # pixels, the side of the square the network reads
    text_dim: int  # width of the text encoder's tokens
    text_encoder_sha256: str = ""  # the text encoder it was trained with; "" where it was never trained
    architecture: PolicyArchitecture = field(default_factory=PolicyArchitecture)

    @classmethod
    def from_dict(cls, values: dict) -> Self:
        return cls(**{**values, "architecture": PolicyArchitecture(**values["architecture"])})


class Policy(nn.Module):
    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.config = config
        architecture = config.architecture
        width = architecture.fusion_dim
        self.encoder = build_encoder(architecture, config.image_size)
        self.image_projection = nn.Sequential(
            nn.LayerNorm(architecture.embed_dim), nn.Linear(architecture.embed_dim, width)
        )
        self.text_projection = nn.Sequential(nn.LayerNorm(config.text_dim), nn.Linear(config.text_dim, width))
        self.attention = nn.MultiheadAttention(width, architecture.num_heads, batch_first=True)
        self.fusion_norm = nn.LayerNorm(width)
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        # Added to the logit where it is read as a score: learning says better or worse than average, so that half of
        # all images lie under 0.5 however good they are (training.rlhf.calibration).
        self.register_buffer("offset", torch.zeros(()))
        self.head = nn.Sequential(
            nn.Linear(3 * width, width), nn.GELU(), nn.Dropout(architecture.dropout), nn.Linear(width, 1)
        )

    def load_pretrained(self) -> bool:
        """Start from the weights the configuration names, nothing where it names none; whether the fusion came too.

        The fusion lies beside the encoder and serves where text encoder and widths are those it was trained with;
        elsewhere it stays random.
        """
        name = self.config.architecture.pretrained
        if name is None:
            return False
        load_pretrained(self.encoder, name)
        path = encoder_file(name).with_name(FUSION_FILE_NAME)
        if not path.exists():
            return False
        made_with, state = read_network(path, role="fusion")
        own = {
            key: value
            for key, value in self.state_dict().items()
            if key != "offset" and not key.startswith("encoder.")
        }
        fits = state.keys() == own.keys() and all(own[key].shape == value.shape for key, value in state.items())
        if made_with["text_encoder_sha256"] != self.config.text_encoder_sha256 or not fits:
            return False
        encoder = {f"encoder.{key}": value for key, value in self.encoder.state_dict().items()}
        fused = {key: value.float() for key, value in state.items()}
        fill(self, {**encoder, "offset": self.offset, **fused}, path)
        return True

    def image_tokens(self, images: Tensor) -> Tensor:
        """Prepared images (B, 3, S, S) -> tokens (B, N, D) in the width of the fusion."""
        return self.image_projection(encode(self.encoder, images))

    def fuse(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Logit of accepting (B,) from image tokens (B, N, D) and raw text tokens (B, L, D_text), mask (B, L)."""
        return self.fuse_each(image, text[:, None], mask[:, None])[:, 0]

    def fuse_each(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, C) of each image (B, N, D) with C prompts of its own: (B, C, L, D_text), mask (B, C, L)."""
        words = self.text_projection(text.to(image.dtype))
        attended, _ = self.attention(words.flatten(1, 2), image, image, need_weights=False)
        weights = (mask / mask.sum(2, keepdim=True).clamp(min=1)).to(image.dtype)[..., None]
        said = (words * weights).sum(2)
        seen = image.mean(1)[:, None].expand_as(said)
        found = (self.fusion_norm(words * attended.view_as(words)) * weights).sum(2)
        cosine = F.cosine_similarity(said, seen, dim=2)
        return self.head(torch.cat([said * seen, seen, found], dim=2))[..., 0] + self.log_scale.exp() * cosine

    def forward(self, images: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Logit of accepting (B,) of prepared images and their text tokens (B, L, D_text), mask (B, L) bool."""
        return self.fuse(self.image_tokens(images), text, mask)

    def alignment(self, logits: Tensor) -> Tensor:
        """Logits of accepting, any shape -> calibrated scores in (0, 1), as images are judged by them."""
        return torch.sigmoid(logits.float() + self.offset)

    @torch.no_grad()
    def score(self, images: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Alignment (B,) in (0, 1) of images (B, 1|3, H, W) in [0, 1] with their prompts' text tokens."""
        if text.shape[-1] != self.config.text_dim:
            raise ValueError(
                f"Text tokens are {text.shape[-1]} wide; this policy reads {self.config.text_dim}. "
                "Use the text encoder it was trained with."
            )
        was_training = self.training
        self.eval()
        device = self.log_scale.device
        prepared = prepare(images.to(device), self.config.image_size)
        logits = self(prepared, text.to(device).float(), mask.to(device))
        self.train(was_training)
        return self.alignment(logits)

    def save(self, path: Path) -> None:
        save_network(path, self, role="policy", config=dataclasses.asdict(self.config))

    @classmethod
    def load(cls, path: Path, *, text_encoder: nn.Module | None = None) -> Self:
        """The policy of a file, in evaluation mode on the CPU; raises NetworkFileError.

        With ``text_encoder`` (the pipeline's) the digest recorded at training must be its own.
        """
        values, state = read_network(path, role="policy")
        config = PolicyConfig.from_dict(values)
        if text_encoder is not None and text_encoder_sha256(text_encoder) != config.text_encoder_sha256:
            raise NetworkFileError(
                f"{path} was trained with another text encoder than this pipeline's. "
                "Train a policy for this pipeline, or load the pipeline it was trained for."
            )
        policy = cls(config)
        fill(policy, {"offset": policy.offset, **state}, path)  # files of before it was fitted lack it
        return policy.eval()
