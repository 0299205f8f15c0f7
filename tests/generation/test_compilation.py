"""A compiled UNet draws the same image and is saved as the same model."""

import shutil

import pytest
import torch

from generation.diffusion.compilation import compile_unet
from tests.tiny_models import build_tiny_pipeline

QUICK = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler, and there is none here")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_it_draws_the_same_image_and_saves_the_same_weights(tmp_path):
    pipeline = build_tiny_pipeline()
    expected = pipeline("OCT: drusen", seeds=[1], **QUICK)
    names = list(pipeline.unet.state_dict())
    assert compile_unet(pipeline) == "The UNet is compiled at its first call."
    torch.testing.assert_close(pipeline("OCT: drusen", seeds=[1], **QUICK), expected, atol=1e-4, rtol=0)
    assert list(pipeline.unet.state_dict()) == names


def test_where_nothing_compiles_the_reason_is_given_and_nothing_changes(monkeypatch):
    def fails(function):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand a long explanation")

    monkeypatch.setattr(torch, "compile", fails)
    pipeline = build_tiny_pipeline()
    assert compile_unet(pipeline).endswith("as without --compile: InvalidCxxCompiler: No working C++ compiler found")
    assert pipeline("OCT: drusen", seeds=[1], **QUICK).isfinite().all()
