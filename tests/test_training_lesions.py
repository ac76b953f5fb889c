"""Synthetic lesions, the pretext that segments them, and what is kept of it."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

import ctssl
from ctssl.phantom import phantom
from ctssl.zoo import Preprocess
from tests.support.tiny import SMALL
from tests.support.training import TINY
from training import pretrain
from training.data.lesions import paste
from training.data.views import Views, rescale
from training.pretext.fusion import Fusion
from training.pretext.lesions import Lesions

WINDOW = Preprocess(2.0, (-1000.0, 400.0))


def chest() -> np.ndarray:
    """Lung, with a wall of soft tissue on one side."""
    hu = np.full((32, 32, 32), -850, np.float32) + np.random.default_rng(0).normal(0, 20, (32, 32, 32))
    hu[:8] = 40
    return hu.astype(np.float32)


def test_a_lesion_of_the_lung_is_denser_ends_at_the_wall_and_follows_its_seed():
    hu, sizes = chest(), []
    for seed in range(40):
        found, mask = paste(hu, 1.5, np.random.default_rng(seed))
        again, same = paste(hu, 1.5, np.random.default_rng(seed))
        assert np.array_equal(found, again) and np.array_equal(mask, same)
        changed = np.abs(found - hu) > 60
        inside = mask & (hu < -500)
        if inside.any():  # in the lung
            sizes.append(mask.sum() * 1.5**3 / 1000)
            assert not mask[:4].any() and np.array_equal(found[:4], hu[:4])
            assert np.median(found[inside]) > np.median(hu[inside]) + 60
            away = 1.5 * np.asarray(ndimage.distance_transform_edt(~mask))  # mm
            assert (changed & (away > 8)).sum() < 0.1 * mask.sum()  # the tips of thin spikes
    assert len(sizes) > 20 and min(sizes) < 1 and max(sizes) > 8  # ml


def test_a_lesion_of_soft_tissue_spares_gas_and_bone():
    hu = np.full((32, 32, 32), 50, np.float32)
    hu[:, :8], hu[:, 24:] = -1000, 900
    for seed in range(10):
        found, mask = paste(hu, 1.5, np.random.default_rng(seed))
        assert mask.any() and not mask[:, :8].any() and not mask[:, 24:].any()
        assert np.array_equal(found[:, :8], hu[:, :8]) and np.array_equal(found[:, 24:], hu[:, 24:])


def test_nothing_is_pasted_into_air():
    hu = np.full((16, 16, 16), -1000, np.float32)
    found, mask = paste(hu, 2.0, np.random.default_rng(0))
    assert not mask.any() and np.array_equal(found, hu)


def test_samples_are_an_image_and_its_mask_at_the_drawn_spacing():
    scan = ((chest() + 1000) / 1400).clip(0, 1)
    how = Views(spacing=(1.0, 4.0), thick=3.0)
    pairs = [Lesions.sample(scan, crop=16, how=how, preprocess=WINDOW, seed=seed) for seed in range(12)]
    for image, mask in pairs:
        assert image.shape == mask.shape == (16, 16, 16) and image.dtype == mask.dtype == np.float32
        assert image.min() >= 0 and image.max() <= 1 and set(np.unique(mask)) <= {0.0, 1.0}
    assert any(mask.any() for _, mask in pairs) and not all(mask.any() for _, mask in pairs)
    assert 1.0 <= how.draw_spacing(2.0, np.random.default_rng(1)) <= 4.0
    assert Views().draw_spacing(2.0, np.random.default_rng(1)) == 2.0


def test_two_crops_are_mixed_by_the_weights_that_the_labels_tell():
    """Of a scan whose halves are 0.2 and 0.6, each label shows the mixtures that its weight allows, and all of them."""
    scan = np.full((48, 24, 24), 0.2, np.float32)
    scan[24:] = 0.6
    plain = Views(zoom=1.0, intensity=0, gamma=1.0, noise=0, blur=0)
    seen: dict[int, set[float]] = {k: set() for k in range(5)}
    for seed in range(30):
        image, labels = Fusion.sample(scan, crop=16, how=plain, preprocess=WINDOW, seed=seed)
        assert 0.2 <= (labels > 0).mean() <= 0.9
        for k in np.unique(labels):
            seen[int(k)] |= set(np.round(image[labels == k], 3).tolist())
    for k, values in seen.items():
        mixed = {a + k / 4 * (b - a) for a in (0.2, 0.6) for b in (0.2, 0.6)}
        assert {round(v, 2) for v in values} == {round(v, 2) for v in mixed}


def test_a_cube_is_rescaled_as_its_mean_and_its_ends_say():
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32)[:, None, None], (12, 12, 12))
    for size in (6, 12, 24):
        found = rescale(ramp, size)
        assert found.shape == (size, size, size)
        np.testing.assert_allclose(found.mean(), 5.5, atol=1e-4)
        assert (np.diff(found[:, 0, 0]) > 0).all()
    noise = np.random.default_rng(0).standard_normal((24, 24, 24)).astype(np.float32)
    assert rescale(noise, 8).std() < 0.4  # averages, does not pick


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin", "vit"])
def test_the_head_is_kept_beside_the_encoder_and_starts_a_fine_tuning(name, tmp_path, labelled):
    (tmp_path / "scans").mkdir()
    phantom(8.0)[0].save(tmp_path / "scans" / "p.nii.gz")
    run = dataclasses.replace(
        TINY,
        name=f"{name}-lesions",
        encoder=name,
        encoder_args=SMALL[name],
        task="lesions",
        corpus=str(tmp_path / "scans"),
        preprocess=WINDOW,
        steps=2,
    )
    task = pretrain.pretrain(run, tmp_path / "run").eval()
    net, encoder = ctssl.load_segmenter(tmp_path / "run"), ctssl.load(tmp_path / "run")
    assert net.labels == {1: "lesion"} and net.spec.pretext == "lesions" and net.head_name == "light"
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(net(x), task.segmenter(x), atol=1e-6)
        assert torch.equal(encoder(x)[-1], net.encoder(x)[-1])
    settings = ctssl.Settings(steps=1, crop=32, batch=1, lr=1e-9, encoder_lr=1e-9, validation=0.0)
    for model in (tmp_path / "run", net):
        out = tmp_path / f"tuned-{type(model).__name__}"
        ctssl.finetune(
            labelled, model=model, out=out, settings=settings, spacing_mm=4.0, hold_out=0, progress=False
        )
        tuned = ctssl.load_segmenter(out).state_dict()
        for key, value in net.state_dict().items():
            torch.testing.assert_close(tuned[key], value, atol=1e-6, rtol=0)
    fresh = ctssl.load_segmenter(
        ctssl.finetune(
            labelled,
            model=tmp_path / "run",
            head="linear",
            out=tmp_path / "other",
            settings=settings,
            spacing_mm=4.0,
            hold_out=0,
            progress=False,
        ).folder
    )
    assert fresh.head_name == "linear" and fresh.parent == f"{name}-lesions"
