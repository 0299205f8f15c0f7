"""Prompts are encoded once, remembered while the weights stay, and never served from other weights."""

import pytest
import torch

from generation.diffusion.conditioning import Conditioning
from generation.diffusion.prompt_memory import PromptMemory
from medsyn.modalities import PromptError
from tests.tiny_models import build_tiny_pipeline, tiny_pipeline

PROMPTS = ["OCT: drusen", "Chest X-ray: left pleural effusion, frontal view", "OCT: drusen"]
QUICK = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture
def counted(monkeypatch):
    """``(pipeline, texts)``: a tiny pipeline, and what its text encoder was given, call by call."""
    pipeline = build_tiny_pipeline()
    texts: list[list[str]] = []
    encode = pipeline.encode_text
    monkeypatch.setattr(pipeline, "encode_text", lambda given: texts.append(list(given)) or encode(given))
    return pipeline, texts


def test_a_call_encodes_each_distinct_prompt_once_and_the_negative_one_once(counted):
    pipeline, texts = counted
    pipeline(PROMPTS, seeds=[1, 2, 3], negative_prompt="blurred", **QUICK)
    assert sorted(texts) == [["Chest X-ray: left pleural effusion, frontal view"], ["OCT: drusen"], ["blurred"]]


def test_without_guidance_the_negative_prompt_is_not_encoded_at_all(counted):
    pipeline, texts = counted
    pipeline(PROMPTS[0], seeds=[1], num_inference_steps=2, guidance_scale=1.0)
    assert texts == [["OCT: drusen"]]


def test_a_memory_serves_the_batches_that_follow(counted):
    pipeline, texts = counted
    memory = PromptMemory(pipeline)
    first = pipeline.draw(PROMPTS, seeds=[1, 2, 3], memory=memory, **QUICK)
    number = len(texts)
    again = pipeline.draw(PROMPTS, seeds=[1, 2, 3], memory=memory, **QUICK)
    assert len(texts) == number == 3
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.images, pipeline.draw(PROMPTS, seeds=[1, 2, 3], **QUICK).images), (
        "bit for bit without it"
    )


def test_what_is_remembered_equals_what_the_pipeline_computes():
    pipeline = tiny_pipeline()
    memory = PromptMemory(pipeline)
    with torch.no_grad():
        for ours, theirs in (
            (memory.conditioning(PROMPTS), pipeline.encode_prompts(PROMPTS)),
            (memory.unconditional(3, "noise"), pipeline.unconditional(3, "noise")),
        ):
            assert torch.equal(ours.mask, theirs.mask)
            where = theirs.mask[..., None]
            torch.testing.assert_close(ours.tokens * where, theirs.tokens * where, atol=1e-5, rtol=0)
            torch.testing.assert_close(ours.pooled, theirs.pooled, atol=1e-5, rtol=0)
        features = pipeline.encode_text(PROMPTS)
        where = features.mask[..., None]
        torch.testing.assert_close(
            memory.features(PROMPTS).tokens * where, features.tokens * where, atol=1e-5, rtol=0
        )


def test_a_prompts_features_are_the_same_bits_in_any_company():
    memory = PromptMemory(tiny_pipeline())
    alone = PromptMemory(tiny_pipeline()).conditioning(PROMPTS[:1])
    together = memory.conditioning(PROMPTS[1:])
    length = alone.tokens.shape[1]
    assert torch.equal(together.tokens[1, :length], alone.tokens[0])


@pytest.mark.parametrize("part", ["text_encoder", "conditioner"])
def test_after_a_training_step_nothing_old_is_served(counted, part):
    pipeline, texts = counted
    memory = PromptMemory(pipeline)
    before = memory.conditioning(PROMPTS[:1]).tokens
    optimizer = torch.optim.SGD(getattr(pipeline, part).parameters(), lr=1.0)
    pipeline.encode_prompts(PROMPTS[:1]).tokens.square().sum().backward()
    optimizer.step()
    after = memory.conditioning(PROMPTS[:1]).tokens
    assert not torch.allclose(before, after)
    with torch.no_grad():
        torch.testing.assert_close(after, pipeline.encode_prompts(PROMPTS[:1]).tokens)


def test_loaded_weights_and_another_precision_are_noticed(counted):
    pipeline, texts = counted
    memory = PromptMemory(pipeline)
    before = memory.conditioning(PROMPTS[:1]).tokens
    pipeline.text_encoder.load_state_dict(build_tiny_pipeline(seed=1).text_encoder.state_dict())
    loaded = memory.conditioning(PROMPTS[:1]).tokens
    assert not torch.allclose(before, loaded)
    pipeline.to(torch.bfloat16)
    assert memory.conditioning(PROMPTS[:1]).tokens.dtype == torch.bfloat16


def test_it_keeps_so_many_texts_and_the_recently_used_ones(counted):
    pipeline, texts = counted
    memory = PromptMemory(pipeline, texts_kept=2)
    for finding in ("drusen", "fluid", "drusen", "macular hole", "drusen", "edema", "drusen", "fluid"):
        memory.conditioning([f"OCT: {finding}"])
    assert [text.removeprefix("OCT: ") for (text,) in texts] == ["drusen", "fluid", "macular hole", "edema", "fluid"]


def test_a_prompt_without_prefix_is_refused():
    with pytest.raises(PromptError):
        PromptMemory(tiny_pipeline()).conditioning(["a nice picture"])


def test_tokens_that_may_not_be_masked_cannot_be_padded():
    short, long = (Conditioning(torch.zeros(1, length, 4), None, None) for length in (2, 3))
    with pytest.raises(ValueError, match="2 tokens without a mask"):
        Conditioning.joined([long, short])
    assert Conditioning.joined([long, long]).mask is None
