"""MedSynPipeline: text, conditioning, latents, images, and everything back from one folder."""

import logging
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel

from generation.diffusion.conditioning import NULL_MODALITY, ConditionProjection, TextFeatures
from generation.diffusion.phantoms import all_captions
from generation.diffusion.pipeline import MedSynPipeline
from generation.diffusion.presets import MEDSYN_TINY, TEST, build_pipeline, build_scheduler, build_unet, build_vae
from generation.diffusion.vocabulary import build_tokenizer
from medsyn.modalities import PromptError
from tests.tiny_models import build_tiny_pipeline, tiny_pipeline

PROMPT = "Chest X-ray: left pleural effusion, frontal view"
QUICK = {"num_inference_steps": 3, "output_type": "pt"}


# --- text ---


def test_an_unseen_word_is_split_and_does_not_vanish():
    tokenizer = build_tokenizer(all_captions(), size=2000, max_tokens=64)
    pieces = tokenizer.tokenize("Chest CT: bronchopneumonic XQ-37 opacity, 3.5 mm (?)")
    assert "[UNK]" not in pieces
    assert "".join(piece.removeprefix("##") for piece in pieces) == "chestct:bronchopneumonicxq-37opacity,3.5mm(?)"


def test_every_word_of_the_captions_is_one_piece():
    tokenizer = build_tokenizer(all_captions(), size=2000, max_tokens=64)
    words = {word for text in all_captions() for word in text.lower().replace("-", " ").split()}
    words = {word.strip(",:") for word in words}
    assert {word for word in words if len(tokenizer.tokenize(word)) > 1} == set()


def test_the_vocabulary_is_the_same_every_time():
    first, second = (build_tokenizer(all_captions(), size=2000, max_tokens=64) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()


@pytest.mark.parametrize("max_tokens", [TEST.max_tokens, 256])  # 256: as BiomedBERT's models have it
def test_a_long_prompt_is_cut_with_a_warning_that_quotes_the_rest(caplog, max_tokens):
    pipeline = build_pipeline(replace(TEST, max_tokens=max_tokens), captions_for_vocabulary=all_captions(), seed=0)
    text = "Chest CT: " + "effusion " * (max_tokens + 8) + "and a final remark"
    with caplog.at_level(logging.WARNING, logger="generation.diffusion"):
        features = pipeline.encode_text([text])
    assert features.tokens.shape[:2] == (1, max_tokens)
    assert f"{max_tokens} tokens" in caplog.text and "and a final remark" in caplog.text
    cut = caplog.records[0].args[1]
    assert text.endswith(cut) and cut == pipeline.cut_off(text)
    kept = text.removesuffix(cut)
    assert len(pipeline.tokenizer(kept)["input_ids"]) == max_tokens
    assert pipeline.cut_off(kept) == ""


def test_a_prompt_that_fits_is_not_warned_about(caplog):
    tiny_pipeline().encode_text([PROMPT])
    assert caplog.text == ""


def test_padding_changes_nothing():
    pipeline = tiny_pipeline()
    alone = pipeline.encode_prompts([PROMPT])
    padded = pipeline.encode_prompts([PROMPT, "OCT: " + "many drusen under the retina, " * 2])
    length = alone.mask.shape[1]
    assert padded.mask[0].sum() == length < padded.mask.shape[1]
    torch.testing.assert_close(padded.tokens[0, :length], alone.tokens[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.pooled[0], alone.pooled[0], atol=1e-5, rtol=0)
    latents, time = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    with torch.no_grad():
        twice = pipeline.denoise(latents.repeat(2, 1, 1, 1), time, padded)[:1]
        torch.testing.assert_close(twice, pipeline.denoise(latents, time, alone), atol=1e-5, rtol=0)


def test_masked_tokens_are_not_attended_to():
    pipeline = tiny_pipeline()
    conditioning = pipeline.encode_prompts([PROMPT])
    spoilt = conditioning.followed_by(pipeline.unconditional(1))  # the second row is padded
    spoilt.tokens[1, ~spoilt.mask[1]] = 1e3
    latents, time = torch.zeros(2, 4, 8, 8), torch.tensor(500)
    with torch.no_grad():
        clean = conditioning.followed_by(pipeline.unconditional(1))
        torch.testing.assert_close(
            pipeline.denoise(latents, time, spoilt), pipeline.denoise(latents, time, clean), atol=1e-5, rtol=0
        )


def test_attention_is_torchs_own_kernel_with_the_mask_of_the_text(monkeypatch):
    pipeline, kernel = tiny_pipeline(), torch.nn.functional.scaled_dot_product_attention
    has_mask = []

    def spy(query, key, value, attn_mask=None, **rest):
        has_mask.append(attn_mask is not None)
        return kernel(query, key, value, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    with torch.inference_mode():
        conditioning = pipeline.encode_prompts([PROMPT])
        has_mask.clear()  # the text encoder attends too
        pipeline.denoise(torch.zeros(1, 4, 8, 8), torch.tensor(500), conditioning)
    blocks = [name for name in pipeline.unet.attn_processors if name.endswith("attn2.processor")]
    assert len(blocks) > 0
    assert has_mask == [False, True] * len(blocks), "within the picture without, to the text with the mask"


# --- conditioning ---


def test_the_pooled_vector_is_the_mean_of_the_texts_own_tokens():
    conditioner = ConditionProjection(6, 4)
    text = TextFeatures(torch.randn(2, 5, 6), torch.tensor([[True] * 5, [True, True, False, False, False]]))
    result = conditioner(text, torch.tensor([1, 2]))
    torch.testing.assert_close(result.pooled[1], result.tokens[1, :2].mean(0))


def test_the_modality_shifts_every_token_by_its_own_vector():
    conditioner = ConditionProjection(6, 4)
    text = TextFeatures(torch.randn(1, 3, 6), torch.ones(1, 3, dtype=torch.bool))
    ct, mri = conditioner.modality_id("CT"), conditioner.modality_id("MRI")
    assert ct != mri and NULL_MODALITY not in (ct, mri)
    difference = conditioner(text, torch.tensor([ct])).tokens - conditioner(text, torch.tensor([mri])).tokens
    rows = conditioner.modality_embedding.weight
    torch.testing.assert_close(difference, (rows[ct] - rows[mri]).expand(1, 3, 4), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="Ultrasound"):
        conditioner.modality_id("Ultrasound")


def test_kinds_of_one_modality_share_its_row():
    ids = tiny_pipeline().modality_ids(["Brain MRI: mass", "Breast MRI: mass", "CT: liver", "cxr: effusion"])
    assert ids[0] == ids[1]
    assert len(set(ids.tolist())) == 3


def test_text_features_that_do_not_belong_together_are_refused():
    text = TextFeatures(torch.zeros(2, 3, 6), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="do not|Expected"):
        ConditionProjection(6, 4)(text, torch.zeros(2, dtype=torch.long))


def test_a_prompt_without_prefix_is_refused_with_the_prefixes():
    with pytest.raises(PromptError, match="Chest X-ray:"):
        tiny_pipeline()("a nice picture", seeds=[1])


def test_the_unconditional_branch_has_neither_caption_nor_modality():
    pipeline = tiny_pipeline()
    nothing = pipeline.unconditional(3)
    text = pipeline.encode_text([""])
    expected = pipeline.condition(text, torch.tensor([NULL_MODALITY]))
    torch.testing.assert_close(nothing.tokens[2], expected.tokens[0])
    assert not torch.allclose(pipeline.unconditional(1, "blurred").pooled, nothing.pooled[:1])


# --- images and latents ---


def test_latents_are_normalised_per_channel_and_back():
    pipeline = build_tiny_pipeline()
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        raw = pipeline.encode_images(images)
        mean, deviation = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
        before = pipeline.decode_latents(raw)
        pipeline.vae.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
        latents = pipeline.encode_images(images)
        torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(pipeline.decode_latents(latents), before, atol=1e-5, rtol=0)


def test_a_single_scaling_factor_serves_where_there_are_no_statistics():
    pipeline = build_tiny_pipeline()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        plain = pipeline.encode_images(images)
        pipeline.vae.register_to_config(scaling_factor=0.5)
        torch.testing.assert_close(pipeline.encode_images(images), plain * 0.5)


def test_images_come_as_floats_in_range_and_of_the_models_size():
    pipeline = tiny_pipeline()
    images = pipeline(PROMPT, seeds=[1, 2], **QUICK)
    assert images.shape == (2, 3, pipeline.image_size, pipeline.image_size) == (2, 3, 32, 32)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert not images.requires_grad


def test_pictures_are_the_rounded_tensor():
    pipeline = tiny_pipeline()
    tensor = pipeline(PROMPT, seeds=[3], **QUICK)[0]
    picture = pipeline(PROMPT, seeds=[3], num_inference_steps=3)[0]
    assert picture.mode == "RGB" and picture.size == (32, 32)
    assert picture.getpixel((5, 9)) == tuple((tensor[:, 9, 5] * 255).round().int().tolist())


def test_other_sizes_are_drawn_and_impossible_ones_refused():
    pipeline = tiny_pipeline()
    assert pipeline(PROMPT, seeds=[1], height=48, width=64, **QUICK).shape == (1, 3, 48, 64)
    with pytest.raises(ValueError, match="multiples of 8"):
        pipeline(PROMPT, seeds=[1], height=42, **QUICK)


def test_each_seed_needs_its_prompt():
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        tiny_pipeline()([PROMPT, PROMPT], seeds=[1])
    with pytest.raises(ValueError, match="output_type"):
        tiny_pipeline()(PROMPT, seeds=[1], output_type="jpeg")


def test_the_prompt_the_modality_and_the_seed_all_show():
    pipeline = tiny_pipeline()
    base = pipeline(PROMPT, seeds=[1], **QUICK)
    for other in ("Chest X-ray: right pleural effusion, frontal view", "CT: left pleural effusion, frontal view"):
        assert (pipeline(other, seeds=[1], **QUICK) - base).abs().max() > 1e-4
    assert (pipeline(PROMPT, seeds=[2], **QUICK) - base).abs().max() > 1e-2
    torch.testing.assert_close(pipeline(PROMPT, seeds=[1], **QUICK), base, atol=0, rtol=0)


# --- parts and folders ---


def test_a_folder_holds_everything(tmp_path):
    pipeline = build_tiny_pipeline(seed=3)
    pipeline.vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    pipeline.register_to_config(recommended_steps=7, recommended_guidance=2.5)
    expected = pipeline(PROMPT, seeds=[5], **QUICK)
    pipeline.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    again = MedSynPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert (again.config.recommended_steps, again.config.recommended_guidance) == (7, 2.5)
    assert again.scheduler.config.prediction_type == "v_prediction"
    assert again.max_tokens == TEST.max_tokens
    torch.testing.assert_close(again(PROMPT, seeds=[5], **QUICK), expected, atol=0, rtol=0)


def test_half_precision_on_disk_draws_nearly_the_same(tmp_path):
    pipeline = build_tiny_pipeline(seed=3)
    expected = pipeline(PROMPT, seeds=[5], **QUICK)
    pipeline.to(torch.float16).save_pretrained(tmp_path)
    again = MedSynPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.unet.dtype == again.text_encoder.dtype == again.conditioner.dtype == torch.float32
    assert (again(PROMPT, seeds=[5], **QUICK) - expected).abs().max() < 0.02


def test_parts_that_do_not_fit_are_named():
    pipeline = build_tiny_pipeline()
    parts = dict(pipeline.components)
    parts["conditioner"] = ConditionProjection(24, TEST.condition_width)
    with pytest.raises(ValueError, match="text_encoder.hidden_size and conditioner.text_width are 16 and 24"):
        MedSynPipeline(**parts)


def test_nothing_assumes_the_tiny_model():
    """Other widths, a VAE that halves once, noise prediction, no class embedding: the full model's freedoms."""
    pipeline = build_tiny_pipeline()
    parts = dict(pipeline.components)
    parts["text_encoder"] = BertModel(
        BertConfig(
            vocab_size=len(pipeline.tokenizer),
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=256,
        ),
        add_pooling_layer=False,
    ).eval()
    parts["conditioner"] = ConditionProjection(24, TEST.condition_width).eval()
    parts["vae"] = build_vae(replace(TEST, vae_channels=(4, 8))).eval()
    parts["unet"] = build_unet(TEST, pooled_text=False).eval()
    parts["scheduler"] = build_scheduler("epsilon")
    other = MedSynPipeline(**parts)
    other.set_progress_bar_config(disable=True)
    assert (other.vae_scale_factor, other.image_size) == (2, 16)
    assert other.encode_prompts([PROMPT]).pooled is None
    assert other(PROMPT, seeds=[1], **QUICK).shape == (1, 3, 16, 16)


def test_building_leaves_the_global_generator_alone_and_obeys_its_seed():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second, third = (build_tiny_pipeline(seed).unet.conv_in.weight for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_medsyn_tiny_has_the_promised_size():
    pipeline = build_pipeline(MEDSYN_TINY, captions_for_vocabulary=all_captions(), seed=0)
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in networks.items()}
    assert 5e6 < counts["unet"] < 11e6
    assert sum(counts.values()) * 2 < 24e6, "fp16 weights of at most 24 MB"
    assert (pipeline.image_size, pipeline.vae_scale_factor) == (128, 4)
