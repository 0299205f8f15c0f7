"""Tiny random models for tests: the preset "test" and a Stable Diffusion of the same size. Milliseconds per image."""

from functools import cache
from pathlib import Path

import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from generation.diffusion.phantoms import all_captions
from generation.diffusion.pipeline import MedSynPipeline
from generation.diffusion.presets import TEST, build_pipeline, build_unet, build_vae
from generation.scoring.architecture import PolicyArchitecture, SelectorArchitecture
from generation.scoring.policy import Policy, PolicyConfig, text_encoder_sha256
from generation.scoring.selector import Selector, SelectorConfig


def build_tiny_pipeline(seed: int = 0) -> MedSynPipeline:
    """A pipeline of the preset "test" that the caller may train or change; another ``seed``, other weights."""
    return build_pipeline(TEST, captions_for_vocabulary=all_captions(), seed=seed)


@cache
def tiny_pipeline() -> MedSynPipeline:
    """One such pipeline for all tests that only look at it."""
    return build_tiny_pipeline()


def write_tiny_models(folder: Path) -> dict[str, Path]:
    """Random weights on disk, as ModelChoice and publish_release name them: what belongs together."""
    pipeline = build_tiny_pipeline()
    files = {
        "pipeline_folder": folder / "pipeline",
        "selector_file": folder / "selector.safetensors",
        "policy_file": folder / "policy.safetensors",
    }
    pipeline.save_pretrained(files["pipeline_folder"])
    small = {"patch_size": 8, "embed_dim": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "pretrained": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        selector = Selector(SelectorConfig(32, SelectorArchitecture(**small, head_dim=8, ensemble_heads=2)))
        config = PolicyConfig(
            32,
            text_dim=pipeline.text_encoder.config.hidden_size,
            text_encoder_sha256=text_encoder_sha256(pipeline.text_encoder),
            architecture=PolicyArchitecture(**small, fusion_dim=8),
        )
        policy = Policy(config)
    selector.save(files["selector_file"])
    policy.save(files["policy_file"])
    return files


def build_tiny_stable_diffusion(seed: int = 0) -> StableDiffusionPipeline:
    """A random pipeline put together as Stable Diffusion 1.5 is: CLIP text encoder, PNDM, noise prediction."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StableDiffusionPipeline(
            vae=build_vae(TEST),
            text_encoder=_build_clip(),
            tokenizer=_build_clip_tokenizer(),
            unet=build_unet(TEST, pooled_text=False),
            scheduler=PNDMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                skip_prk_steps=True,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def _build_clip() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(_clip_vocabulary()),
        hidden_size=TEST.condition_width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config).eval()


def _build_clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab=_clip_vocabulary(), merges=[], model_max_length=77)


@cache
def _clip_vocabulary() -> dict[str, int]:
    """Start, end, and every printable ASCII character at and before the end of a word."""
    characters = [chr(code) for code in range(33, 127)]
    pieces = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{letter}</w>" for letter in characters)]
    return {piece: index for index, piece in enumerate(pieces)}
