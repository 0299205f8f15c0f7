"""Presets and `manage.py init_model`: shapes, sizes, parts brought along, and what is refused."""

import csv
import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from django.core.management import CommandError, call_command
from huggingface_hub import constants as hub
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizer, GPT2Config

from generation.diffusion.conditioning import TextFeatures
from generation.diffusion.loading import ModelMismatch, ModelNotFound, ModelSource, load_generator
from generation.diffusion.phantoms import all_captions
from generation.diffusion.presets import (
    MEDSYN_BASE,
    MEDSYN_SMALL,
    PRESETS,
    TEST,
    TextParts,
    build_pipeline,
    build_vae,
)
from generation.diffusion.pretrained_parts import BIOMED_BERT, load_autoencoder, load_text_parts
from generation.diffusion.vocabulary import build_tokenizer
from generation.management.commands.init_model import PRESET_NAMES
from medsyn.artifacts import read_manifest, verify_folder

BIOMED_BERT_CONFIG = BertConfig()  # BERT-base, as BiomedBERT is: 12 layers, 768 wide, 30522 word pieces


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=300,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A tiny random BERT with its tokenizer, as transformers saves a masked language model: what BiomedBERT is."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(3)
    BertForMaskedLM(bert_config()).save_pretrained(folder)
    tokenizer = build_tokenizer(["Fundus: drusen", "OCT: fluid"] * 100, size=300, max_tokens=512)
    assert len(tokenizer) <= 300
    tokenizer.save_pretrained(folder)
    return folder


def save_autoencoder(folder: Path, levels: int, latent_channels: int = 4) -> Path:
    torch.manual_seed(levels)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(4,) * levels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=2,
        sample_size=32,
    ).save_pretrained(folder)
    return folder


def init_model(output: Path, *flags: str) -> str:
    printed = StringIO()
    call_command("init_model", "--output_dir", str(output), *map(str, flags), stdout=printed)
    return printed.getvalue()


def weights(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


# --- shapes, without memory ---


def test_the_base_model_has_the_full_size():
    with torch.device("meta"):
        text = TextParts(BertModel(BIOMED_BERT_CONFIG), build_tokenizer([], size=300, max_tokens=256))
        pipeline = build_pipeline(MEDSYN_BASE, seed=0, text=text)
    # Stable Diffusion 1.5's UNet has 859,520,964 parameters. Keys and values of its 16 cross-attentions read text
    # that is 768 wide, ours 256: of widths 320, 640 and 1280 there are 5, 5 and 6.
    narrower = 2 * (768 - 256) * (5 * 320 + 5 * 640 + 6 * 1280)
    assert count(pipeline.unet) == 859_520_964 - narrower
    assert pipeline.unet.config.block_out_channels == (320, 640, 1280, 1280)
    assert (pipeline.unet.config.sample_size, pipeline.unet.config.in_channels) == (64, 4)
    assert pipeline.conditioner.projection.weight.shape == (256, 768)
    assert (pipeline.image_size, pipeline.vae_scale_factor, pipeline.max_tokens) == (256, 4, 256)
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert not pipeline.scheduler.config.rescale_betas_zero_snr, "noise prediction is undefined at zero SNR"


def test_the_small_model_trains_in_12_gigabytes():
    with torch.device("meta"):
        pipeline = build_pipeline(MEDSYN_SMALL, captions_for_vocabulary=all_captions(), seed=0)
        latents, steps = torch.zeros(2, 4, 64, 64), torch.zeros(2)
        text = TextFeatures(torch.zeros(2, 256, 256), torch.zeros(2, 256, dtype=torch.bool))
        conditioning = pipeline.condition(text, torch.zeros(2, dtype=torch.long))
        assert pipeline.denoise(latents, steps, conditioning).shape == latents.shape
        posterior = pipeline.vae.encode(torch.zeros(2, 3, 256, 256)).latent_dist
        assert posterior.mean.shape == latents.shape
        assert pipeline.vae.decode(posterior.mean).sample.shape == (2, 3, 256, 256)
    assert (pipeline.image_size, pipeline.vae_scale_factor, pipeline.max_tokens) == (256, 4, 256)
    trained = count(pipeline.unet) + count(pipeline.conditioner) + count(pipeline.text_encoder)
    assert 16 * trained < 3e9, "bytes of weights, gradients and AdamW's two averages"
    assert not {"[UNK]"} & set(pipeline.tokenizer.tokenize("Chest X-ray: bilateral ~ opacities"))


def test_the_small_presets_still_have_the_shape_they_were_trained_in():
    with torch.device("meta"):
        pipeline = build_pipeline(PRESETS["medsyn-tiny"], captions_for_vocabulary=all_captions(), seed=0)
    assert pipeline.text_encoder.config.hidden_size == 128
    assert pipeline.unet.config.class_embed_type == "projection"
    assert len(pipeline.tokenizer) <= 2000


# --- parts from elsewhere ---


@pytest.mark.parametrize(("levels", "latent_channels"), [(2, 4), (3, 3), (4, 4)])
def test_any_autoencoder_decides_the_latent(tmp_path, levels, latent_channels):
    vae = save_autoencoder(tmp_path / "vae", levels, latent_channels)
    printed = init_model(tmp_path / "model", "--preset", "test", "--vae", vae)
    side = 32 // 2 ** (levels - 1)
    assert f"latent {side}x{side}x{latent_channels} (f={2 ** (levels - 1)})" in printed
    assert weights(tmp_path / "model" / "vae") == weights(vae)
    generator = load_generator(ModelSource(str(tmp_path / "model")), device="cpu")
    (image,) = generator.generate(["OCT: drusen"], [1], num_inference_steps=2)
    assert image.size == (32, 32)
    latents = generator.pipeline.encode_images(torch.rand(1, 3, 32, 32))
    assert latents.shape == (1, latent_channels, side, side)


def test_the_autoencoder_of_a_pipeline_can_be_named_by_the_pipeline(tmp_path):
    save_autoencoder(tmp_path / "other" / "vae", 2)
    assert load_autoencoder(tmp_path / "other").config.block_out_channels == [4, 4]


def test_an_autoencoder_that_is_too_coarse_is_refused(tmp_path):
    vae = save_autoencoder(tmp_path / "vae", 6)
    with pytest.raises(CommandError, match="32 times smaller does not fit images of 32 pixels"):
        init_model(tmp_path / "model", "--preset", "test", "--vae", vae)
    assert not (tmp_path / "model").exists()


def test_what_is_no_autoencoder_is_refused(tmp_path, bert):
    with pytest.raises(ModelNotFound, match="holds no autoencoder"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    with pytest.raises(ModelMismatch, match="AutoencoderTiny"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ModelNotFound, match="incomplete"):
        load_autoencoder(tmp_path)
    AutoencoderKL(in_channels=1, out_channels=1, block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path)
    with pytest.raises(ModelMismatch, match=r"\(1, 1\) channels"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("weight_file", ["model.safetensors", "pytorch_model.bin"])
def test_a_text_encoder_comes_from_a_folder(tmp_path, bert, weight_file):
    """BiomedBERT is a masked language model in a pytorch_model.bin: prefix, head and format must not matter."""
    stored = load_file(bert / "model.safetensors")
    folder = tmp_path / "bert"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((bert / name).read_bytes())
    if weight_file.endswith(".bin"):
        torch.save(stored, folder / weight_file)
    else:
        (folder / weight_file).write_bytes((bert / weight_file).read_bytes())
    printed = init_model(tmp_path / "model", "--preset", "test", "--text_encoder", folder)
    assert "24 wide -> 8" in printed and "at most 32 tokens" in printed
    loaded = load_generator(ModelSource(str(tmp_path / "model")), device="cpu").pipeline
    assert loaded.max_tokens == 32, "the preset's, though tokenizer and encoder take more"
    words = loaded.text_encoder.embeddings.word_embeddings.weight
    assert torch.equal(words, stored["bert.embeddings.word_embeddings.weight"])
    own = BertTokenizer.from_pretrained(bert)
    assert loaded.tokenizer("OCT: fluid")["input_ids"] == own("OCT: fluid")["input_ids"]


def test_a_vocabulary_file_alone_is_a_tokenizer(tmp_path, bert):
    """BiomedBERT's folder on the hub has vocab.txt and no tokenizer.json."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bert / name).read_bytes())
    pieces = sorted(BertTokenizer.from_pretrained(bert).get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces))
    text = load_text_parts(tmp_path, max_tokens=256)
    assert text.tokenizer.model_max_length == 48, "the encoder's positions"
    assert text.tokenizer("Fundus: Drusen").tokens() == ["[CLS]", "fundus", ":", "drusen", "[SEP]"]


def test_text_encoder_folders_that_cannot_be_used(tmp_path, bert):
    with pytest.raises(ModelNotFound, match="There is no text encoder folder"):
        load_text_parts(tmp_path / "nowhere", max_tokens=64)
    with pytest.raises(ModelNotFound, match=r"lacks config\.json"):
        load_text_parts(tmp_path, max_tokens=64)
    (tmp_path / "config.json").write_text(json.dumps(bert_config().to_dict()))
    with pytest.raises(ModelNotFound, match=r"lacks model\.safetensors or pytorch_model\.bin"):
        load_text_parts(tmp_path, max_tokens=64)
    (tmp_path / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes())
    with pytest.raises(ModelNotFound, match=r"lacks tokenizer\.json or vocab\.txt"):
        load_text_parts(tmp_path, max_tokens=64)
    (tmp_path / "vocab.txt").write_text("".join(f"piece{index}\n" for index in range(400)))
    with pytest.raises(ModelMismatch, match="do not belong together"):
        load_text_parts(tmp_path, max_tokens=64)
    (tmp_path / "config.json").write_text(json.dumps(GPT2Config().to_dict()))
    with pytest.raises(ModelMismatch, match="'gpt2'"):
        load_text_parts(tmp_path, max_tokens=64)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_the_base_model_without_its_text_encoder_says_what_to_fill(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CommandError) as caught:
        init_model(tmp_path / "model", "--preset", "medsyn-base")
    message = str(caught.value)
    assert str(tmp_path / "cache" / f"models--{BIOMED_BERT.replace('/', '--')}") in message
    assert "--text_encoder" in message and "medsyn-small" in message
    assert not (tmp_path / "model").exists()


def test_the_text_encoder_is_found_in_the_hubs_cache(tmp_path, monkeypatch, bert):
    revision = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / f"models--{BIOMED_BERT.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(revision)
    snapshot = place / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for path in bert.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    assert load_text_parts(None, max_tokens=16).encoder.config.hidden_size == 24


# --- the command ---


def test_the_same_seed_makes_the_same_files(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        init_model(tmp_path / name, "--preset", "test", "--seed", str(seed))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a)
    manifest = verify_folder(tmp_path / "a")
    assert (manifest["preset"], manifest["seed"], manifest["text_encoder"]) == ("test", 1, None)


def test_the_table_counts_what_is_written(tmp_path):
    printed = init_model(tmp_path / "model", "--preset", "test", "--precision", "bfloat16")
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines()}
    tensors = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert lines["unet"][0] == f"{sum(tensor.numel() for tensor in tensors.values()):,}"
    numbers = [int(lines[name][0].replace(",", "")) for name in ("vae", "text_encoder", "conditioner", "unet")]
    assert int(lines["together"][0].replace(",", "")) == sum(numbers)
    assert float(lines["together"][1]) == pytest.approx(sum(numbers) * 2 / 1e6, abs=0.05)


def test_the_vocabulary_is_learnt_from_the_datasets_captions(tmp_path):
    with (tmp_path / "data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "Text", "modality"])
        rows.writerows([["1.png", "Fundus: Stargardt, flecks", "Fundus"]] * 100)
    init_model(tmp_path / "model", "--preset", "test", "--captions", tmp_path / "data.csv")
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "model" / "tokenizer")
    assert tokenizer.tokenize("Stargardt flecks") == ["stargardt", "flecks"]
    assert "stargardt" not in build_tokenizer(all_captions(), size=400, max_tokens=32).get_vocab()


def test_captions_that_cannot_be_read(tmp_path, bert):
    path = tmp_path / "data.csv"
    for content, message in (
        (None, "cannot be read: No such file"),
        (b"path,caption\n1.png,x\n", "has no column 'Text'; its first line reads: path,caption"),
        (b"path,Text\n1.png,\n", "holds no caption"),
        (b"path,Text\n1.png,\xff\xfe\n", "is no CSV of UTF-8 text"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CommandError, match=message):
            init_model(tmp_path / "model", "--preset", "test", "--captions", path)
    path.write_text("path,Text\n1.png,OCT: fluid\n")
    with pytest.raises(CommandError, match="the text encoder brings another"):
        init_model(tmp_path / "model", "--preset", "test", "--captions", path, "--text_encoder", bert)


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(CommandError, match="exists already"):
        init_model(tmp_path / "model", "--preset", "test")
    assert list((tmp_path / "model").iterdir()) == []
    with pytest.raises(CommandError, match="--seed -1 is negative"):
        init_model(tmp_path / "other", "--preset", "test", "--seed", "-1")


def test_every_preset_can_be_named():
    assert set(PRESET_NAMES) == set(PRESETS)


def test_a_new_model_is_not_marked_as_a_drawer_of_phantoms(tmp_path):
    init_model(tmp_path / "model", "--preset", "medsyn-tiny")
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["draws_phantoms"] is False
    assert read_manifest(tmp_path / "model")["preset"] == "medsyn-tiny"


def test_the_test_preset_without_a_text_encoder_of_its_own_asks_for_one():
    with pytest.raises(ValueError, match="no text encoder of its own"):
        build_pipeline(MEDSYN_BASE, seed=0)
    assert build_vae(TEST).config.latent_channels == 4
