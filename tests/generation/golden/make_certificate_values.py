"""Which thresholds MAPIE's risk controller finds valid, written to certificate.json for test_certificate.py.

Run in an environment of its own that has MAPIE (1.6.0 when the file was written) and NumPy:
``python tests/generation/golden/make_certificate_values.py``.
"""

import json
from pathlib import Path

import numpy as np
from mapie.risk_control import BinaryClassificationController, precision

SETTINGS = [
    (seed, number, alpha, gap)
    for seed, (number, alpha, gap) in enumerate(
        [(200, 0.10, 2.0), (500, 0.10, 1.5), (500, 0.05, 2.0), (1000, 0.05, 2.0), (300, 0.20, 1.0), (400, 0.10, 0.0)]
    )
]
DELTA = 0.10


def one(seed: int, number: int, alpha: float, gap: float) -> dict:
    random = np.random.default_rng(seed)
    is_poor = random.random(number) < 0.3
    # Six decimals survive the JSON file, and both sides see the same numbers.
    scores = np.round(1 / (1 + np.exp(gap * is_poor - random.standard_normal(number))), 6)
    thresholds = np.round(np.quantile(scores, 1 - np.arange(40, 101, 5) / 100), 6)
    controller = BinaryClassificationController(
        predict_function=lambda x: np.stack([1 - x[:, 0], x[:, 0]], axis=1),
        risk=precision,
        target_level=1 - alpha,
        confidence_level=1 - DELTA,
        list_predict_params=thresholds,
        fwer_method="fixed_sequence",
    )
    controller.calibrate(scores[:, None], (~is_poor).astype(int))
    return {
        "alpha": alpha,
        "scores": scores.tolist(),
        "is_poor": is_poor.tolist(),
        "thresholds": thresholds.tolist(),
        "p_values": np.asarray(controller.p_values).ravel().tolist(),
        "valid": sorted(np.asarray(controller.valid_predict_params).tolist(), reverse=True),
    }


if __name__ == "__main__":
    values = [one(*setting) for setting in SETTINGS]
    Path(__file__).with_name("certificate.json").write_text(json.dumps(values))
