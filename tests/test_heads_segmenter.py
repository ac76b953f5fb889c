"""An encoder and a head together, on whole scans."""

import numpy as np
import pytest
import torch

import ctssl
from ctssl import Swin, finetuning
from ctssl.heads.segmenter import Segmenter
from ctssl.volume.volume import Volume


def test_a_segmenter_that_could_not_be_loaded_again_is_not_built(tiny):
    for how, words in (
        (dict(classes=3, labels={1: "a"}), "name 1 to 2"),
        (dict(window=513), "1 to 512 voxels"),
    ):
        with pytest.raises(ValueError, match=words):
            ctssl.segmenter(tiny, **how)
    with pytest.raises(ValueError, match="crops of 16 voxels or more"):
        ctssl.segmenter(finetuning.BASELINES["dynunet"](), head="dynunet", window=8)


def test_unknown_heads_and_too_few_classes_are_refused(encoder):
    with pytest.raises(ValueError, match="linear"):
        Segmenter(encoder, head="unte")
    with pytest.raises(ValueError, match="at least 2"):
        Segmenter(encoder, classes=1)


def test_a_mask_comes_back_on_the_scans_own_grid(encoder, ball):
    scan, _ = ball
    turned = Volume(
        np.ascontiguousarray(scan.array.transpose(2, 0, 1)[::-1]), scan.affine[:, [2, 0, 1, 3]].copy()
    )
    turned.affine[:3, 3] += turned.affine[:3, 0] * (turned.shape[0] - 1)
    turned.affine[:3, 0] *= -1
    model = Segmenter(encoder, head="linear", classes=3).eval()
    model.window = 24
    one, two = model.segment(scan), model.segment(turned)
    assert one.shape == scan.shape and one.array.dtype == np.uint8
    np.testing.assert_allclose(one.affine, scan.affine)
    back = two.array[::-1].transpose(1, 2, 0)
    assert (back == one.array).mean() > 0.995


def test_mirroring_averages_what_the_model_says_of_all_eight(encoder):
    from ctssl.inference.windows import mirrored

    model = Segmenter(encoder, head="linear").eval()
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        total = sum(
            model(image.flip(axes)).flip(axes)
            for axes in [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]
        )
        torch.testing.assert_close(mirrored(model)(image), total / 8)


def test_the_embedding_of_a_scan_of_any_size_is_one_vector(encoder):
    rng = np.random.default_rng(0)
    for shape in ((9, 20, 31), (130, 40, 25)):
        scan = Volume(rng.normal(0, 200, shape).astype(np.float32) - 200, np.diag([2.0, 2.0, 2.0, 1.0]))
        vector = encoder.embed(scan)
        assert vector.shape == (encoder.channels[-1],) and torch.isfinite(vector).all()


def test_a_large_scan_in_pieces_has_nearly_the_features_of_the_whole():
    from ctssl.inference.features import feature_maps

    torch.manual_seed(0)
    swin = Swin(12, depths=(2, 2), heads=(2, 4), window=4, patch=2, merge_last=False).eval()
    image = torch.rand(1, 1, 140, 40, 32)
    with torch.no_grad():
        whole = swin(image)[-1][0]
    pieces = feature_maps(swin, image)[-1]
    assert pieces.shape == whole.shape
    assert (pieces - whole).abs().mean() < 0.15 * whole.std()


def test_segmenter_by_name_of_a_folder(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "enc")
    model = ctssl.segmenter(tmp_path / "enc", head="linear", classes=4)
    assert model.classes == 4 and model.parent == "enc"
