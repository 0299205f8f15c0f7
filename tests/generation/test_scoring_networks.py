"""Selector and policy as they are served: they see their image, their prompt, and nothing of their neighbours."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from generation.scoring.architecture import PolicyArchitecture, QualityMetricsSettings, SelectorArchitecture
from generation.scoring.encoder import build_encoder, load_pretrained, prepare
from generation.scoring.network_file import NetworkFileError, save_network
from generation.scoring.policy import Policy, PolicyConfig, text_encoder_sha256
from generation.scoring.selector import KIND_SLUGS, Selector, SelectorConfig, kind_indices
from medsyn.modalities import UnknownModality

SIZE = 32
TEXT_DIM = 12
SMALL = {"patch_size": 8, "embed_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32, "pretrained": None}


def make_selector(seed: int = 0, **metrics) -> Selector:
    torch.manual_seed(seed)
    architecture = SelectorArchitecture(**SMALL, head_dim=8, ensemble_heads=4)
    return Selector(SelectorConfig(SIZE, architecture, QualityMetricsSettings(**metrics)))


def make_policy(seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    return Policy(PolicyConfig(SIZE, TEXT_DIM, "abc", PolicyArchitecture(**SMALL, fusion_dim=16)))


def random_images(count: int, channels: int = 3, size: int = SIZE) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(5))


def random_text(count: int, length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(length).expand(count, -1) < torch.arange(count)[:, None] % length + 1
    return torch.randn(count, length, TEXT_DIM, generator=torch.Generator().manual_seed(6)), mask


def test_the_selector_tells_noise_from_zeros_from_an_image():
    x, y = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    disc = ((x**2 + y**2) < 0.5).float().expand(3, -1, -1)
    images = torch.stack([random_images(1)[0], torch.zeros(3, SIZE, SIZE), disc])
    selector = make_selector()
    selector.metric_used.zero_()  # by its pixels alone
    scores = selector.score(images, ["oct"] * 3).mean
    assert min(abs(scores[0] - scores[1]), abs(scores[1] - scores[2]), abs(scores[0] - scores[2])) > 2e-5


def test_the_loss_reaches_the_patch_embedding_of_every_patch():
    selector = make_selector().eval()
    images = random_images(2).requires_grad_()
    kinds = kind_indices(["oct", "ct"])
    selector(prepare(images, SIZE), selector.measure(images.detach()), kinds)[..., 0].sum().backward()
    assert selector.encoder.patch_embed.proj.weight.grad.abs().sum() > 0
    per_patch = torch.nn.functional.avg_pool2d(images.grad.abs(), SMALL["patch_size"])
    assert (per_patch > 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_score_does_not_depend_on_the_neighbours_in_the_batch(channels):
    selector, policy = make_selector(), make_policy()
    images, (text, mask) = random_images(4, channels), random_text(4)
    kinds = ["oct", "fundus", "chest_ct", "mri"]
    together = selector.score(images, kinds)
    aligned = policy.score(images, text, mask)
    for i in range(4):
        alone = selector.score(images[i : i + 1], kinds[i : i + 1])
        assert torch.allclose(alone.mean, together.mean[i : i + 1], atol=1e-5)
        assert torch.allclose(alone.serving, together.serving[i : i + 1], atol=1e-5)
        length = int(mask[i].sum())  # and not on the padding that longer neighbours bring
        assert torch.allclose(
            policy.score(images[i : i + 1], text[i : i + 1, :length], mask[i : i + 1, :length]),
            aligned[i : i + 1],
            atol=1e-5,
        )


def test_scoring_is_deterministic_and_leaves_the_mode_as_it_was():
    selector, policy = make_selector().train(), make_policy().train()
    images, text = random_images(3), random_text(3)
    first, second = selector.score(images, ["oct"] * 3), selector.score(images, ["oct"] * 3)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(policy.score(images, *text), policy.score(images, *text))
    assert selector.training
    assert policy.training


def test_scores_lie_in_their_ranges_and_serving_is_the_lower_bound():
    scores = make_selector().score(random_images(5), ["oct"] * 5)
    assert ((scores.mean > 0) & (scores.mean < 1)).all()
    assert (scores.std > 0).all()
    assert torch.allclose(scores.serving, (scores.mean - scores.std).clamp(0, 1))


def test_the_temperature_of_a_kind_moves_only_that_kind():
    selector, images = make_selector(), random_images(1).repeat(2, 1, 1, 1)
    before = selector.score(images, ["oct", "oct"]).mean
    selector.temperature[KIND_SLUGS.index("oct")] = 1e6
    after = selector.score(images, ["oct", "fundus"]).mean
    assert after[0].item() == pytest.approx(0.5, abs=1e-4)
    assert after[1].item() == pytest.approx(before[1].item(), abs=1e-6)


def test_metrics_are_standardised_within_each_kind():
    selector = make_selector()
    metrics = torch.cat([torch.randn(40, 12) * 3 + 10, torch.randn(40, 12) - 5])
    kinds = kind_indices(["oct"] * 40 + ["ct"] * 40)
    selector.fit_metrics(metrics, kinds)
    features = selector.metric_features(metrics, kinds)[:, :12]
    for half in (features[:40], features[40:]):
        assert torch.allclose(half.mean(0), torch.zeros(12), atol=1e-3)
        assert torch.allclose(half.std(0, correction=0), torch.ones(12), atol=0.05)
    assert torch.equal(selector.metric_features(metrics, kinds)[:, 12:24], features.abs())


def test_a_threshold_adds_a_shortfall_and_never_a_gate():
    images = torch.full((1, 3, SIZE, SIZE), 0.4)  # no contrast at all
    strict, open_minded = make_selector(contrast_threshold=1.0), make_selector(contrast_threshold=0.0)
    for selector in (strict, open_minded):
        assert 0.05 < selector.score(images, ["mri"]).mean.item() < 0.95
    metrics, kinds = strict.measure(images), kind_indices(["mri"])
    assert strict.metric_features(metrics, kinds)[0, -1] == 1
    assert open_minded.metric_features(metrics, kinds)[0, -1] == 0


def test_artifact_detection_off_hides_the_artefact_metrics():
    images = random_images(1)
    selector = make_selector(artifact_detection=False)
    features = selector.metric_features(selector.measure(images), kind_indices(["oct"]))
    assert (features[0, selector.metric_used.nonzero()[:, 0]] != 0).any()
    hidden = (selector.metric_used == 0).nonzero()[:, 0]
    assert len(hidden) == 5
    assert (features[0, hidden] == 0).all()
    assert (features[0, 12 + hidden] == 0).all()


def test_any_image_size_is_brought_to_the_networks_own():
    selector = make_selector()
    assert selector.score(random_images(2, 3, 57), ["oct"] * 2).mean.shape == (2,)
    with pytest.raises(ValueError, match="2 images but 1 kinds"):
        selector.score(random_images(2), ["oct"])
    with pytest.raises(UnknownModality, match="ultrasound"):
        selector.score(random_images(1), ["ultrasound"])


def test_the_policy_depends_on_the_prompt_and_on_the_image():
    policy = make_policy()
    images, (text, mask) = random_images(2), random_text(2)
    mask = torch.ones_like(mask)
    scores = policy.score(images, text, mask)
    assert abs(scores[0] - policy.score(images[:1], text[1:], mask[1:])[0]) > 1e-4
    assert abs(scores[0] - policy.score(images[1:], text[:1], mask[:1])[0]) > 1e-4
    assert ((scores > 0) & (scores < 1)).all()


def test_the_policy_names_a_text_encoder_of_another_width():
    with pytest.raises(ValueError, match="7 wide; this policy reads 12"):
        make_policy().score(random_images(1), torch.zeros(1, 3, 7), torch.ones(1, 3, dtype=torch.bool))


def test_saved_networks_score_as_before(tmp_path):
    selector, policy = make_selector(), make_policy()
    selector.temperature.fill_(1.7)
    policy.offset.fill_(0.9)
    selector.save(tmp_path / "selector.safetensors")
    policy.save(tmp_path / "policy.safetensors")
    images, text = random_images(2), random_text(2)
    again = Selector.load(tmp_path / "selector.safetensors")
    assert not again.training
    assert again.config == selector.config
    assert torch.equal(again.score(images, ["oct"] * 2).mean, selector.score(images, ["oct"] * 2).mean)
    assert torch.equal(Policy.load(tmp_path / "policy.safetensors").score(images, *text), policy.score(images, *text))


def test_a_policy_of_before_there_was_an_offset_scores_as_it_did(tmp_path):
    policy, path = make_policy(), tmp_path / "policy.safetensors"
    policy.save(path)
    state, role = load_file(path), safe_open(path, "pt").metadata()
    save_file({name: tensor for name, tensor in state.items() if name != "offset"}, path, metadata=role)
    images, text = random_images(2), random_text(2)
    assert torch.equal(Policy.load(path).score(images, *text), policy.score(images, *text))


def test_equal_weights_are_equal_files(tmp_path):
    for name in ("a", "b"):
        make_selector().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_files_that_are_not_a_selector_are_refused_by_name(tmp_path):
    path = tmp_path / "policy.safetensors"
    make_policy().save(path)
    with pytest.raises(NetworkFileError, match="holds policy, not a selector"):
        Selector.load(path)
    with pytest.raises(NetworkFileError, match="nowhere.safetensors is not there"):
        Selector.load(tmp_path / "nowhere.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:200])
    with pytest.raises(NetworkFileError, match="cut.safetensors cannot be read"):
        Policy.load(cut)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(NetworkFileError, match="holds something else"):
        Policy.load(foreign)


def test_weights_of_another_architecture_are_refused(tmp_path):
    selector = make_selector()
    path = tmp_path / "selector.safetensors"
    config = {"image_size": SIZE, "architecture": {**SMALL, "num_layers": 5}, "quality_metrics": {}}
    save_network(path, selector, role="selector", config=config)
    with pytest.raises(NetworkFileError, match="another architecture"):
        Selector.load(path)


def test_the_policy_refuses_another_text_encoder(tmp_path):
    encoder = torch.nn.Linear(3, TEXT_DIM)
    torch.manual_seed(0)
    config = PolicyConfig(SIZE, TEXT_DIM, text_encoder_sha256(encoder), PolicyArchitecture(**SMALL, fusion_dim=16))
    path = tmp_path / "policy.safetensors"
    Policy(config).save(path)
    Policy.load(path, text_encoder=encoder)
    with pytest.raises(NetworkFileError, match="another text encoder"):
        Policy.load(path, text_encoder=torch.nn.Linear(3, TEXT_DIM))


def test_the_text_encoder_digest_is_that_of_half_precision():
    encoder = torch.nn.Linear(3, 4)
    encoder.load_state_dict({name: value.half().float() for name, value in encoder.state_dict().items()})
    assert text_encoder_sha256(encoder) == text_encoder_sha256(encoder.half())


def test_a_pretrained_encoder_fills_both_networks_at_any_image_size(tmp_path):
    path = tmp_path / "encoder.safetensors"
    torch.manual_seed(3)
    source = build_encoder(SelectorArchitecture(**SMALL), SIZE).half()
    save_network(path, source, role="encoder", config={})
    target = build_encoder(SelectorArchitecture(**SMALL), 2 * SIZE)
    load_pretrained(target, str(path))
    weight = source.patch_embed.proj.weight.float()
    assert torch.equal(target.patch_embed.proj.weight, weight)
    assert target.pos_embed.shape[1] == 4 * source.pos_embed.shape[1]
    wider = build_encoder(SelectorArchitecture(**{**SMALL, "embed_dim": 32}), SIZE)
    with pytest.raises(NetworkFileError, match="does not fit the architecture"):
        load_pretrained(wider, str(path))
