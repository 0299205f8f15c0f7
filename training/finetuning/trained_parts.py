"""Which modules learn, wholly or through adapters, and how their weights go to a folder and back."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import Tensor, nn

from generation.diffusion.lora import FOLDER_NAME, Adapter, AdapterError, add_adapter, merge_adapter, switch_adapter
from generation.diffusion.text_to_image import TextToImage

AVERAGE = "_ema"  # ends the folders of moving averages


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or does not belong to this run or model."""


@dataclass(frozen=True)
class TrainedParts:
    """The modules that learn, by the name of their folder."""

    whole: Mapping[str, nn.Module]  # all their weights learn
    adapted: Mapping[str, nn.Module]  # only their low-rank adapters learn
    rank: int  # of the adapters; 0 where there are none
    base_weights_sha256: str  # digest of the model that training began with
    _beginnings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # of whole parts beside adapters

    @classmethod
    def of(
        cls, pipeline: TextToImage, *, with_text_encoder: bool, rank: int, seed: int, base_weights_sha256: str
    ) -> Self:
        """The pipeline's trainable parts, the text encoder if asked, adapters instead of weights for a ``rank``.

        Adapters replace the weights of UNet and text encoder. A conditioner always learns whole: it is a few
        thousandths of the model, has no attention to adapt, and holds the vector of each modality.
        """
        whole = dict(pipeline.trainable_parts)
        if with_text_encoder:
            whole["text_encoder"] = pipeline.text_encoder
        adapted = {name: whole.pop(name) for name in ("unet", "text_encoder") if rank and name in whole}
        for part in whole.values():
            part.requires_grad_(True)
        for index, part in enumerate(adapted.values()):
            add_adapter(part, rank, seed + index)
        # Parts that stand beside adapters are small; without adapters this would be the whole model.
        return cls(whole, adapted, rank, base_weights_sha256, _weights_of(whole) if adapted else {})

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {**self.whole, **self.adapted}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns, always in the same order."""
        return [each for part in self.modules.values() for each in part.parameters() if each.requires_grad]

    # --- folders ---

    def save(self, folder: Path, suffix: str = "") -> None:
        """Each whole part as diffusers saves it, and one file for all adapters."""
        for name, part in self.whole.items():
            part.save_pretrained(folder / f"{name}{suffix}")
        if self.adapted:
            adapter = Adapter.of(self.adapted, self.rank, self.base_weights_sha256)
            adapter.write(folder / f"{FOLDER_NAME}{suffix}")

    def restore(self, folder: Path, suffix: str = "") -> None:
        """The weights that `save` wrote; raises CheckpointError where they are absent or of something else."""
        for name, part in self.whole.items():
            load_part(folder / f"{name}{suffix}", part)
        if self.adapted:
            self._restore_adapter(folder / f"{FOLDER_NAME}{suffix}")

    def _restore_adapter(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is missing: the checkpoint was written without --use_lora.")
        try:
            adapter = Adapter.read(folder)
            if adapter.base_weights_sha256 != self.base_weights_sha256:
                raise CheckpointError(f"{folder} was trained on another model. Start from that one, by its name.")
            if adapter.rank != self.rank:
                raise CheckpointError(f"{folder} has rank {adapter.rank}. Give --rank {adapter.rank}.")
            adapter.put_into(self.adapted)
        except AdapterError as error:
            raise CheckpointError(str(error)) from None

    def has_average(self, folder: Path) -> bool:
        names = [*self.whole, *([FOLDER_NAME] if self.adapted else [])]
        return all((folder / f"{name}{AVERAGE}").is_dir() for name in names)

    # --- the model that training began with ---

    @contextlib.contextmanager
    def untrained(self) -> Iterator[None]:
        """The modules compute as before training, and as they are again afterwards.

        Raises ValueError without adapters: the weights that training began with are not kept then.
        """
        if not self.adapted:
            raise ValueError("Only a training of adapters can look back at the model that it began with.")
        trained = _weights_of(self.whole)
        try:
            for name, part in self.whole.items():
                part.load_state_dict(self._beginnings[name])
            for part in self.adapted.values():
                switch_adapter(part, on=False)
            yield
        finally:
            for name, part in self.whole.items():
                part.load_state_dict(trained[name])
            for part in self.adapted.values():
                switch_adapter(part, on=True)

    # --- moving averages ---

    @contextlib.contextmanager
    def averaged(self, ema: EMAModel | None) -> Iterator[None]:
        """The modules hold the average, where there is one, and their own weights again afterwards."""
        if ema is None:
            yield
            return
        parameters = self.parameters
        ema.store(parameters)
        ema.copy_to(parameters)
        try:
            yield
        finally:
            ema.restore(parameters)

    def merge_adapters(self) -> None:
        """Adapters become part of the weights, for good; nothing can be trained afterwards."""
        for part in self.adapted.values():
            merge_adapter(part)


def _weights_of(parts: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """Copies, by part and name."""
    return {
        name: {key: tensor.detach().clone() for key, tensor in part.state_dict().items()}
        for name, part in parts.items()
    }


def load_part(folder: Path, part: nn.Module) -> None:
    """The weights of a folder into a module; raises CheckpointError where it is absent or does not fit."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing: the checkpoint was written with other flags.")
    stored = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]  # large parts are split over files
    try:
        part.load_state_dict({name: tensor for tensors in stored for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{folder} is of another architecture than the model. {error}") from None
