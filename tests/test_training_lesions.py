"""Synthetic lesions, the pretext that segments them, and what is kept of it."""

import dataclasses
from typing import Any

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
from training.data.axes import resample
from training.data.draws import Draws
from training.data.lesions import paste
from training.data.loader import Places, Samples, loader
from training.data.resident import Resident, resident_batches
from training.data.views import Crops, Views
from training.pretext.fusion import Fusion
from training.pretext.lesions import Lesions

WINDOW = Preprocess(2.0, (-1000.0, 400.0))


def chest(count: int = 1) -> torch.Tensor:
    """Lung, with a wall of soft tissue on one side."""
    noise = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    hu = -850 + 20 * noise
    hu[:8] = 40
    return hu.expand(count, -1, -1, -1).clone()


def pasted(hu: torch.Tensor, spacing_mm: float, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    found, mask = paste(hu, torch.full((len(hu),), spacing_mm), Draws.of_samples(seeds))
    return found.numpy(), mask.numpy()


def test_a_lesion_of_the_lung_is_denser_ends_at_the_wall_and_follows_its_seed():
    hu, sizes = chest()[0].numpy(), []
    found, masks = pasted(chest(40), 1.5, list(range(40)))
    again, same = pasted(chest(2), 1.5, [7, 0])  # whatever the other samples of the batch are
    np.testing.assert_allclose(found[[7, 0]], again, atol=1e-2)
    assert np.array_equal(masks[[7, 0]], same)
    for new, mask in zip(found, masks, strict=True):
        changed = np.abs(new - hu) > 60
        inside = mask & (hu < -500)
        if inside.any():  # in the lung
            sizes.append(mask.sum() * 1.5**3 / 1000)
            assert not mask[:4].any() and np.array_equal(new[:4], hu[:4])
            assert np.median(new[inside]) > np.median(hu[inside]) + 60
            away = 1.5 * np.asarray(ndimage.distance_transform_edt(~mask))  # mm
            assert (changed & (away > 8)).sum() < 0.1 * mask.sum()  # the tips of thin spikes
    assert len(sizes) > 20 and min(sizes) < 1 and max(sizes) > 8  # ml


def test_a_lesion_of_soft_tissue_spares_gas_and_bone():
    hu = torch.full((10, 32, 32, 32), 50.0)
    hu[:, :, :8], hu[:, :, 24:] = -1000, 900
    found, mask = pasted(hu, 1.5, list(range(10)))
    assert mask.any((1, 2, 3)).all() and not mask[:, :, :8].any() and not mask[:, :, 24:].any()
    assert np.array_equal(found[:, :, :8], hu[:, :, :8]) and np.array_equal(found[:, :, 24:], hu[:, :, 24:])


def test_nothing_is_pasted_into_air():
    hu = torch.full((2, 16, 16, 16), -1000.0)
    found, mask = pasted(hu, 2.0, [0, 1])
    assert not mask.any() and np.array_equal(found, hu)


def samples(
    task, scan: np.ndarray, how: Views, *, count: int, resident: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of some samples, from the loader or drawn on a device."""
    run = dataclasses.replace(TINY, crop=16, batch=count, views=how, preprocess=WINDOW)

    class One:
        def __len__(self):
            return 1

        def scan(self, number):
            return scan.astype(np.float16)

        def patient(self, number):
            return 0

    corpus: Any = One()
    if resident:
        batches = resident_batches(corpus, task, run, torch.device("cpu"), first=0, last=1, rank=0)
    else:
        places = Places(batch=count, pieces=1, rank=0, world=1, first=0, last=1)
        batches = iter(loader(Samples(corpus, task, run), places, workers=0))
    image, labels = (view[:, 0].numpy() for view in next(batches).views)
    return image, labels


@pytest.fixture(params=[False, True], ids=["loader", "resident"])
def resident(request) -> bool:
    return request.param


@pytest.fixture
def swin():
    return ctssl.Swin(**SMALL["swin"])


def test_samples_are_an_image_and_its_mask_at_the_drawn_spacing(resident, swin):
    scan = ((chest()[0].numpy() + 1000) / 1400).clip(0, 1)
    how = Views(spacing=(1.0, 4.0), thick=3.0)
    image, mask = samples(Lesions(swin), scan, how, count=12, resident=resident)
    assert image.shape == mask.shape == (12, 16, 16, 16) and image.dtype == mask.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1 and set(np.unique(mask)) <= {0.0, 1.0}
    some = mask.any((1, 2, 3))
    assert some.any() and not some.all()
    assert how.spacing_at(0.0, 2.0) == pytest.approx(1.0) and how.spacing_at(1.0, 2.0) == pytest.approx(4.0)
    assert Views().spacing_at(0.3, 2.0) == 2.0


def test_two_crops_are_mixed_by_the_weights_that_the_labels_tell(resident, swin):
    """Of a scan whose halves are 0.2 and 0.6, each label shows the mixtures that its weight allows, and all of them."""
    scan = np.full((48, 24, 24), 0.2, np.float32)
    scan[24:] = 0.6
    plain = Views(zoom=1.0, intensity=0, gamma=1.0, noise=0, blur=0)
    seen: dict[int, set[float]] = {k: set() for k in range(5)}
    images, masks = samples(Fusion(swin), scan, plain, count=30, resident=resident)
    for image, labels in zip(images, masks, strict=True):
        assert 0.2 <= (labels > 0).mean() <= 0.9
        for k in np.unique(labels):
            seen[int(k)] |= set(np.round(image[labels == k], 2).tolist())
    for k, values in seen.items():
        mixed = {a + k / 4 * (b - a) for a in (0.2, 0.6) for b in (0.2, 0.6)}
        assert {round(v, 2) for v in values} == {round(v, 2) for v in mixed}


def test_a_cube_is_rescaled_as_its_mean_and_its_ends_say():
    ramp = torch.arange(12.0)[:, None, None].expand(12, 12, 12)
    for size in (6, 12, 24):
        padded = torch.nn.functional.pad(
            ramp, (0, 3, 0, 3, 0, 3), value=99.0
        )  # what lies beyond the edge does not count
        found = resample(padded[None], torch.tensor([12]), size)[0]
        assert found.shape == (size, size, size)
        assert found.mean().item() == pytest.approx(5.5, abs=1e-4)
        assert (found[:, 0, 0].diff() > 0).all()
    noise = torch.randn(1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    assert resample(noise, torch.tensor([24]), 8).std() < 0.4  # averages, does not pick


def test_a_device_draws_the_crops_that_the_loader_does(tmp_path):
    """Cut out of the scans, mirrored, with tissue, and in the lung as often as asked."""
    rng = np.random.default_rng(0)
    scans = [rng.random((40, 36, 50)).astype(np.float16), rng.random((20, 60, 30)).astype(np.float16)]
    scans[1][:, 30:] = 0

    class Two:
        def __len__(self):
            return 2

        def scan(self, number):
            return scans[number]

        def patient(self, number):
            return 10 + number

    corpus: Any = Two()
    found = Resident(corpus, torch.device("cpu"))
    place = torch.tensor([[-1, 0, 19], [0, 39, 40]])
    voxels = found.values(torch.tensor([1, 0]), place, place, place).numpy()
    assert voxels[0, 0].max() == 0 and voxels[0, 2, 1, 2] == scans[1][19, 0, 19]
    assert voxels[1, 0, 0, 2] == scans[0][0, 0, 40] and voxels[1, 2].max() == 0  # 40 lies outside
    run = dataclasses.replace(TINY, crop=24, batch=16, preprocess=Preprocess(2.0, (-1000.0, 400.0)))
    draws = Draws.of_batch(16, 3, torch.device("cpu"))
    cubes, spacing, which = found.crops(draws, run, Crops())
    assert (
        cubes.shape == (16, 1, 24, 24, 24)
        and set(spacing.tolist()) == {2.0}
        and set(which.tolist()) == {0, 1}
    )
    for cube, number in zip(cubes[:, 0].numpy(), which.tolist(), strict=True):
        assert ((cube > 0).mean() > 0.2) and set(cube[cube > 0]) <= set(
            scans[number].astype(np.float32).ravel()
        )
    twins, _, _ = found.crops(draws, run, Crops(2, twins=True))
    assert twins.shape == (16, 2, 24, 24, 24) and not torch.equal(twins[:, 0], twins[:, 1])
    one, two = (
        [
            b.views[0]
            for b in resident_batches(corpus, None, run, torch.device("cpu"), first=first, last=3, rank=0)
        ]
        for first in (0, 2)
    )
    assert torch.equal(one[2], two[0]) and not torch.equal(one[1], one[2])


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
