"""What a GPU computes is what the CPU does."""

import numpy as np
import pytest
import torch

import ctssl
from ctssl.cli.main import main
from tests.support.tiny import QUICK_FLAGS

pytestmark = pytest.mark.gpu


def test_an_encoder_has_the_same_maps_on_a_gpu(encoder):
    image = torch.rand(1, 1, 40, 32, 36)
    with torch.no_grad():
        here = encoder(image)
        there = encoder.to("cuda")(image.to("cuda"))
    for one, two in zip(here, there, strict=True):
        torch.testing.assert_close(one, two.cpu(), atol=1e-2, rtol=1e-2)  # convolutions in TF32


def test_a_segmenter_trains_on_a_gpu_and_gives_the_mask_of_the_cpu(labelled, tiny_folder, tmp_path):
    ask = ["finetune", str(labelled), "--model", str(tiny_folder), "--out", str(tmp_path / "m"), *QUICK_FLAGS]
    assert main([*ask, "--device", "cuda"]) == 0
    net, scan = ctssl.load_segmenter(tmp_path / "m"), labelled / "images" / "case2.nii.gz"
    here = net.segment(scan).array
    there = net.to("cuda").segment(scan).array
    assert np.mean(here == there) > 0.999
