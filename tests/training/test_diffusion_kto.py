"""Diffusion-KTO: its loss against the formula, and the look back at the generator that training began with."""

import math

import pytest
import torch

from generation.diffusion.loading import ModelSource, load_generator
from training.finetuning.diffusion_kto import kto_loss
from training.finetuning.trained_parts import TrainedParts

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_loss_is_the_formula():
    losses, reference = [0.10, 0.30, 0.21], [0.11, 0.28, 0.20]
    weights, beta = [1, -1, 1], 100.0
    gains = [beta * (before - now) for before, now in zip(reference, losses, strict=True)]  # 1, -2, -1
    centre = max(0.0, sum(gains) / 3)
    regrets = [1 - 1 / (1 + math.exp(-w * (gain - centre))) for w, gain in zip(weights, gains, strict=True)]
    expected = 4 / beta * sum(regrets) / 3
    found = kto_loss(torch.tensor(losses), torch.tensor(reference), torch.tensor(weights), beta)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_no_gradient_flows_through_the_divergence():
    losses = torch.tensor([0.1, 0.2], requires_grad=True)
    kto_loss(losses, torch.tensor([0.3, 0.4]), torch.tensor([1, 1]), beta=10.0).backward()
    gains, centre = [2.0, 2.0], 2.0
    slopes = [1 / (1 + math.exp(-(g - centre))) * (1 - 1 / (1 + math.exp(-(g - centre)))) for g in gains]
    assert losses.grad.tolist() == pytest.approx([4 * slope / 2 for slope in slopes], rel=1e-5)


@pytest.mark.parametrize("beta", [1.0, 2000.0])
def test_the_first_step_follows_the_signed_loss_whatever_beta_is(beta):
    losses = torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)
    kto_loss(losses, losses.detach(), torch.tensor([1, -1, 1, -1]), beta).backward()
    assert losses.grad.tolist() == pytest.approx([0.25, -0.25, 0.25, -0.25])


def test_an_unwanted_image_that_is_far_away_counts_no_more():
    losses = torch.tensor([0.5], requires_grad=True)
    kto_loss(losses, torch.tensor([0.1]), torch.tensor([-1]), beta=2000.0).backward()
    assert abs(losses.grad.item()) < 1e-6


def parts_of(folder, rank: int) -> tuple[TrainedParts, object]:
    pipeline = load_generator(ModelSource(str(folder / "model")), device="cpu").pipeline
    return TrainedParts.of(pipeline, with_text_encoder=False, rank=rank, seed=0, base_weights_sha256="0"), pipeline


def test_untrained_parts_compute_as_before_and_come_back_as_they_were(base):
    parts, pipeline = parts_of(base, rank=2)
    latents, timesteps = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0)), torch.tensor([10, 500])

    @torch.no_grad()
    def output():
        text = pipeline.encode_text(["OCT: drusen", "Fundus: left eye"])
        condition = pipeline.condition(text, torch.tensor([0, 1]))
        return pipeline.denoise(latents, timesteps, condition)

    first = output()
    with torch.no_grad():
        for number, parameter in enumerate(parts.parameters):
            parameter.add_(torch.randn(parameter.shape, generator=torch.manual_seed(number)) * 0.1)
    learns = [parameter.requires_grad for parameter in parts.parameters]
    trained = output()
    assert (trained - first).abs().max() > 1e-3
    with parts.untrained():
        torch.testing.assert_close(output(), first, rtol=0, atol=0)
    torch.testing.assert_close(output(), trained, rtol=0, atol=0)
    assert [parameter.requires_grad for parameter in parts.parameters] == learns


def test_without_adapters_there_is_no_looking_back(base):
    parts, _ = parts_of(base, rank=0)
    with pytest.raises(ValueError, match="adapters"), parts.untrained():
        pass
