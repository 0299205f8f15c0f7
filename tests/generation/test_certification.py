"""What a certificate freezes beyond rows: how images reach selector and policy."""

import hashlib

import numpy as np
from PIL import Image

from generation import certification
from generation.certificate import Promise, calibrate
from generation.filtering import FilterRule
from generation.production import as_tensor


def test_the_preprocessing_is_that_of_its_version():
    """Whoever changes what the networks are shown raises PREPROCESSING_VERSION: every certificate ends with it."""
    ramp = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3) % 256
    shown = as_tensor([Image.fromarray(ramp.astype(np.uint8))]).numpy()
    assert (shown.shape, shown.dtype) == ((1, 3, 32, 32), np.float32)
    digest = hashlib.sha256(np.round(shown * 255).astype(np.uint8).tobytes()).hexdigest()
    assert (certification.PREPROCESSING_VERSION, digest[:16]) == (1, "41b80081ca5aec56")
    assert (shown.min(), shown.max()) == (0.0, 1.0)


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
