"""What a certificate freezes beyond rows: how images reach selector and policy."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from generation import certification
from generation.certificate import Promise, calibrate
from generation.filtering import FilterRule
from generation.memorisation import LEVEL, MIN_HELD_OUT, MIN_OWN_KIND, NEIGHBOURS, SCALES, nearest, small_pictures
from generation.models import Release
from generation.parameters import SAMPLING, Arithmetic
from generation.production import as_tensor


def test_the_preprocessing_is_that_of_its_version():
    """Whoever changes what the networks are shown raises PREPROCESSING_VERSION: every certificate ends with it."""
    ramp = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3) % 256
    shown = as_tensor([Image.fromarray(ramp.astype(np.uint8))]).numpy()
    assert (shown.shape, shown.dtype) == ((1, 3, 32, 32), np.float32)
    digest = hashlib.sha256(np.round(shown * 255).astype(np.uint8).tobytes()).hexdigest()
    assert (certification.PREPROCESSING_VERSION, digest[:16]) == (1, "41b80081ca5aec56")
    assert (shown.min(), shown.max()) == (0.0, 1.0)


def test_copies_are_told_as_in_its_version():
    """What is blocked is not served, so a changed rule raises PREPROCESSING_VERSION as well."""
    rule = (LEVEL, MIN_HELD_OUT, MIN_OWN_KIND, NEIGHBOURS, SCALES)
    assert (certification.PREPROCESSING_VERSION, rule) == (1, (0.01, 200, 99, 8, (1.0, 0.95, 0.9)))
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    waves = [torch.sin(rows / 5 + k * columns / 9) * torch.sin(columns / 4 - rows / (7 + k)) for k in (1, 2, 3)]
    pictures = torch.stack([0.5 + 0.4 * wave for wave in waves])[:, None]
    trained = small_pictures(pictures[:2])
    shown = torch.stack([pictures[0].flip(-1), pictures[1].roll(2, -1), pictures[2]])
    similarity, position = nearest(shown, trained)
    assert position.tolist()[:2] == [0, 1]
    assert similarity.tolist() == pytest.approx([1, 0.982, 0.199], abs=2e-3)


def test_every_sampling_parameter_is_certified():
    assert set(certification._SAMPLING.values()) == set(SAMPLING)


def test_what_images_were_computed_in_is_certified():
    release = Release(pipeline_sha256="a" * 64, selector_sha256="b" * 64, policy_sha256="c" * 64)
    call = {"release": release, "parameters": {"precision": "auto"}, "prompts": ["Fundus: drusen"]}
    pipeline = certification.frozen_pipeline(**call, arithmetic=Arithmetic("bfloat16", "cuda"))
    assert (pipeline["precision"], pipeline["device"]) == ("bfloat16", "cuda")


def test_the_certified_rule_is_the_filters_rule():
    """min(selector, policy) >= threshold serves exactly what the filter passes, on the threshold itself too."""
    random = np.random.default_rng(0)
    selector, policy = random.random((2, 4000))
    certified = np.minimum(selector, policy)
    found = calibrate(certified[:500], selector[:500] < 0.05, unrated_scores=certified[500:], promise=Promise())
    rule = FilterRule(found.threshold, 1, 1)
    passes = [rule.passes(*pair) for pair in zip(selector, policy, strict=True)]
    assert passes == (certified >= found.threshold).tolist()
    at = int(np.flatnonzero(certified == found.threshold)[0])  # a threshold is the score of an unrated image
    assert passes[at]
