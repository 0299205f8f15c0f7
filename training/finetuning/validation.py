"""Images of the validation prompts, drawn while training: one row of a grid per prompt, the same seeds every time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from generation.diffusion.text_to_image import TextToImage

_GAP = 2  # pixels between two images of a grid
_WITHOUT_ADVICE = {"num_inference_steps": 50, "guidance_scale": 7.5}  # where the model's maker recommends nothing


@dataclass(frozen=True)
class Validation:
    """When and what to draw."""

    prompts: tuple[str, ...]
    images_per_prompt: int
    every: int  # steps
    last_step: int
    resolution: int  # pixels
    seed: int
    scheduler: str  # the sampler's name
    folder: Path

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step}.png"

    def is_due(self, step: int) -> bool:
        return bool(self.prompts) and step > 0 and (step % self.every == 0 or step == self.last_step)

    def is_missing(self, step: int) -> bool:
        return self.is_due(step) and not self.path(step).exists()

    def draw(self, pipeline: TextToImage) -> Image.Image:
        """The grid, with the sampler settings that the model recommends; the parts must be in eval mode."""
        seeds = [self.seed + index for index in range(self.images_per_prompt)]
        rows = [
            pipeline(
                prompt,
                seeds=seeds,
                **_WITHOUT_ADVICE | pipeline.recommended_sampling,
                scheduler=self.scheduler,
                height=self.resolution,
                width=self.resolution,
            )
            for prompt in self.prompts
        ]
        return grid(rows)


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures of one size, row by row, with a white gap between them."""
    width, height = rows[0][0].size
    num_columns = max(len(row) for row in rows)
    size = (num_columns * (width + _GAP) - _GAP, len(rows) * (height + _GAP) - _GAP)
    canvas = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas.paste(picture, (x * (width + _GAP), y * (height + _GAP)))
    return canvas
