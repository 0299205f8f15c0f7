"""Images denoised side by side at different steps: the same as alone, and the same bits in any company."""

import random

import pytest
import torch
from diffusers import DDIMScheduler

from generation.diffusion.sampling import SCHEDULERS
from generation.diffusion.trajectories import BatchShape, Sampling, TrajectoryBatch, clean_estimate
from tests.tiny_models import build_tiny_pipeline, tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PROMPTS = [
    "Chest X-ray: normal",
    "Brain MRI: left mass, T2 weighted axial slice",
    "Chest CT: nodule in the right lung",
]
MIDDLE = Sampling(num_inference_steps=6, guidance_scale=3.0, guidance_interval=(0.2, 0.8))
TOKENS = 20


def prompt_of(number: int) -> str:
    return PROMPTS[number % len(PROMPTS)]


def draw_all(batch: TrajectoryBatch, numbers, *, stop=None) -> dict[int, torch.Tensor]:
    """Begin the numbers in order whenever there is room; the images of those that finished."""
    waiting, images = list(numbers), {}
    while waiting or batch.under_way:
        while waiting and batch.has_room():
            number = waiting.pop(0)
            batch.begin(number, prompt=prompt_of(number), seed=100 + number)
        finished, _ = batch.step()
        images |= {one.number: batch.image(one) for one in finished}
        if stop and batch.under_way:
            stop(batch)
    return images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_trajectories_are_what_the_pipeline_draws(scheduler, guidance_scale):
    pipeline = tiny_pipeline()
    settings = {
        "num_inference_steps": 6,
        "guidance_scale": guidance_scale,
        "guidance_interval": (0.2, 0.8),
        "scheduler": scheduler,
    }
    batch = TrajectoryBatch(pipeline, Sampling(**settings), BatchShape(rows=4, tokens=TOKENS))
    images = draw_all(batch, range(5))
    drawing = pipeline.draw([prompt_of(k) for k in range(5)], seeds=[100 + k for k in range(5)], **settings)
    for number, image in images.items():
        assert torch.allclose(image, drawing.images[number], atol=2e-4), f"{number}: same image up to rounding"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_has_the_same_bits_whoever_is_stopped_and_refilled_beside_it(dtype):
    """The first in other rows, at other steps, beside others: every bit the same, and so alone."""
    pipeline = build_tiny_pipeline().to(dtype=dtype)
    shape = BatchShape(rows=5, tokens=TOKENS)
    draw = random.Random(3)

    def stop_one(batch):
        if draw.random() < 0.4:
            batch.give_up(draw.choice(batch.under_way).number)

    orders = [[3, *range(10, 20)], [10, 11, 12, 3, *range(13, 20)], [18, 3, 10, 12]]
    pictures = []
    while len(pictures) < 6:  # some are stopped themselves
        batch = TrajectoryBatch(pipeline, MIDDLE, shape)
        pictures += [
            image for number, image in draw_all(batch, draw.choice(orders), stop=stop_one).items() if number == 3
        ]
    alone = draw_all(TrajectoryBatch(pipeline, MIDDLE, shape), [3])[3]
    assert all(torch.equal(picture, alone) for picture in pictures)
    assert alone.std() > 0.01


def test_every_call_has_the_same_number_of_rows_and_every_row_that_is_no_copy_is_counted(monkeypatch):
    pipeline, rows = build_tiny_pipeline(), []
    denoise = pipeline.denoise

    def counted(latents, timestep, conditioning):
        rows.append((len(latents), conditioning.tokens.shape[1]))
        return denoise(latents, timestep, conditioning)

    monkeypatch.setattr(pipeline, "denoise", counted)
    used = 0

    def stop_one(batch):
        nonlocal used
        if len(rows) in (3, 5):
            used += batch.give_up(batch.under_way[-1].number)

    batch = TrajectoryBatch(pipeline, MIDDLE, BatchShape(rows=4, tokens=TOKENS))
    images = draw_all(batch, range(6), stop=stop_one)
    assert set(rows) == {(4, TOKENS)}
    guided = sum(0.2 <= (step + 0.5) / 6 <= 0.8 for step in range(6))
    assert len(images) == 4 and used > 0
    assert 4 * len(rows) == len(images) * (6 + guided) + used + batch.padding


def test_room_is_what_a_new_one_could_move_in():
    batch = TrajectoryBatch(tiny_pipeline(), MIDDLE, BatchShape(rows=2, tokens=TOKENS))
    batch.begin(0, prompt=PROMPTS[0], seed=0)
    assert batch.has_room(), "the first step is not guided and takes one row"
    batch.begin(1, prompt=PROMPTS[0], seed=1)
    assert not batch.has_room()
    done = []
    while batch.under_way:
        batch.step()
        done.append([one.done for one in batch.under_way])
    assert done[0] == [1, 1] and done[1] == [2, 1], "a guided step takes both rows; the older one goes first"


def test_the_keeper_is_asked_after_each_step_but_the_last_and_ends_what_it_refuses():
    asked = []

    def keep(trajectories):
        asked.extend((one.number, one.done) for one in trajectories)
        assert all(one.clean_estimate.shape == batch.latent_shape for one in trajectories)
        return [(one.number, one.done) != (1, 2) for one in trajectories]

    batch = TrajectoryBatch(tiny_pipeline(), MIDDLE, BatchShape(rows=4, tokens=TOKENS), keep=keep)
    images = draw_all(batch, [0, 1])
    assert set(images) == {0}
    assert sorted(asked) == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 1), (1, 2)]


def test_looking_on_changes_no_bit():
    shape = BatchShape(rows=3, tokens=TOKENS)
    plain = draw_all(TrajectoryBatch(tiny_pipeline(), MIDDLE, shape), [7])[7]
    watched = TrajectoryBatch(tiny_pipeline(), MIDDLE, shape, keep=lambda all_of_them: [True] * len(all_of_them))
    assert torch.equal(draw_all(watched, [7])[7], plain)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("timestep", [40, 500, 950])
def test_the_clean_estimate_is_the_image_behind_a_perfect_prediction(prediction_type, timestep):
    scheduler = DDIMScheduler(prediction_type=prediction_type)
    draw = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn((2, 4, 8, 8), generator=draw) for _ in range(2))
    alpha = scheduler.alphas_cumprod[timestep]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    output = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction_type]
    found = clean_estimate(scheduler, noisy, output, torch.tensor(timestep))
    assert torch.allclose(found, clean, atol=1e-3)


def test_a_batch_too_small_for_a_guided_step_is_refused():
    with pytest.raises(ValueError, match="needs two"):
        TrajectoryBatch(tiny_pipeline(), MIDDLE, BatchShape(rows=1, tokens=TOKENS))
