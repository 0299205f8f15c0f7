import math

import pytest
import torch

from generation.diffusion.phantoms import FINDINGS, draw
from generation.scoring.quality_metrics import ARTEFACT_METRICS, QUALITY_METRICS, measure

SIZE = 64


def column(images: torch.Tensor, name: str) -> torch.Tensor:
    return measure(images)[:, QUALITY_METRICS.index(name)]


def phantom(kind_slug: str, **options) -> torch.Tensor:
    phantom_class = next(each for each in FINDINGS if each.kind.slug == kind_slug)
    pixels = draw(phantom_class, seed=3, size=SIZE, **options).pixels
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(SIZE, SIZE),
        torch.ones(SIZE, SIZE),
        torch.full((SIZE, SIZE), 0.5),
        torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0)),
        torch.full((SIZE, SIZE), math.nan),
        torch.zeros(17, 40),
    ],
    ids=["black", "white", "grey", "noise", "nan", "small"],
)
def test_every_metric_is_finite_for_any_image(image, channels):
    metrics = measure(image.expand(2, channels, -1, -1))
    assert metrics.shape == (2, len(QUALITY_METRICS))
    assert metrics.dtype == torch.float32
    assert torch.isfinite(metrics).all()


def test_grey_and_its_three_equal_channels_measure_alike():
    grey = torch.rand(2, 1, SIZE, SIZE)
    assert torch.allclose(measure(grey), measure(grey.expand(-1, 3, -1, -1)), atol=1e-5)


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.1])
def test_signal_to_noise_finds_the_noise_that_was_added(noise):
    signal = 0.6
    generator = torch.Generator().manual_seed(1)
    image = signal + noise * torch.randn(1, 1, 128, 128, generator=generator)
    # The foreground is what lies above the mean: half of the pixels, E|z| = sqrt(2 / pi) deviations brighter.
    expected = math.log(signal + noise * math.sqrt(2 / math.pi)) - math.log(noise)
    assert column(image, "log_snr").item() == pytest.approx(expected, abs=0.08)


def test_contrast_is_the_percentile_range():
    ramp = torch.linspace(0, 1, SIZE).expand(1, 1, SIZE, SIZE)
    assert column(ramp, "contrast").item() == pytest.approx(0.96, abs=0.03)
    assert column(0.5 * ramp, "contrast").item() == pytest.approx(0.48, abs=0.02)


def test_artefact_metrics_answer_to_their_artefact():
    clean = phantom("chest_xray")
    generator = torch.Generator().manual_seed(0)
    salted = torch.where(torch.rand(1, 1, SIZE, SIZE, generator=generator) < 0.05, torch.ones(()), clean)
    rows = torch.arange(SIZE, dtype=torch.float32)[:, None]
    striped = (clean + 0.1 * torch.sin(rows * 2 * math.pi / 5)).clamp(0, 1)
    blocks = torch.nn.functional.avg_pool2d(clean, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    shifted = clean.clone()
    shifted[:, :, SIZE // 2 :] = (shifted[:, :, SIZE // 2 :] + 0.3).clamp(0, 1)
    for name, spoilt in {
        "impulse_share": salted,
        "saturated_share": (clean * 3).clamp(0, 1),
        "stripe_excess": striped,
        "blockiness": blocks,
        "row_jumps": shifted,
    }.items():
        assert column(spoilt, name) > column(clean, name), name
    assert set(ARTEFACT_METRICS) <= set(QUALITY_METRICS)


def test_images_too_small_or_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 1\|3, H, W\).*got \(1, 3, 8, 8\)"):
        measure(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="got"):
        measure(torch.zeros(3, 64, 64))
