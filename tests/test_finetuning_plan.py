"""Spacing, window and network follow from the tumours."""

import dataclasses

import numpy as np
import pytest

import ctssl
from ctssl.finetuning import plan
from ctssl.volume.volume import Volume
from tests.support.tiny import QUICK


def test_the_spacing_follows_from_the_tumours():
    def spacing(radius_mm, voxel_mm, organ=False):
        n = round(60 / voxel_mm)
        place = (np.arange(n) - n / 2 + 0.5) * voxel_mm
        x, y, z = np.meshgrid(place, place, place, indexing="ij")
        mask = (x**2 + y**2 + z**2 < radius_mm**2).astype(np.uint8)
        ball = Volume(
            mask + 1 if organ else mask, np.diag([voxel_mm] * 3 + [1.0])
        )  # the tumour is label 2 in an organ
        return plan.derive_spacing(plan.pool([plan.measure(ball, ball)]), 1.5)

    assert spacing(6.0, 1.0) == pytest.approx(1.2, abs=0.02)  # 12 mm across
    assert spacing(25.0, 1.0) == 3.0 and spacing(3.0, 1.0) == 1.0
    assert spacing(6.0, 1.0, organ=True) == pytest.approx(1.2, abs=0.02)
    assert plan.derive_spacing(plan.Structures({}, {}, 1.0, 300.0), 2.0) == 2.0


def test_the_crop_follows_from_the_tumours_and_is_not_larger_than_the_scans():
    def crop(diameter_mm, extent_mm, spacing_mm=2.0):
        return plan.derive_crop(plan.Structures({1: diameter_mm}, {}, 1.0, extent_mm), spacing_mm)

    assert [crop(20.0, 400.0), crop(90.0, 400.0)] == [64, 96]
    assert crop(43.0, 92.0, 2.71) == 32 and crop(20.0, 100.0) == 48 and crop(20.0, 10.0) == 32


def test_one_label_of_seven_decides_neither_spacing_nor_window():
    soft = np.linspace(0, 100, 1001)
    hu = dict.fromkeys(range(1, 7), soft) | {7: np.linspace(200, 1500, 1001)}  # a mandible
    sizes = dict.fromkeys(range(1, 7), 40.0) | {7: 8.0}
    common = plan.Structures(sizes, hu, 1.0, 300.0)
    assert plan.derive_window(common, (-500.0, 500.0)) == (-50.0, 150.0)
    assert plan.derive_spacing(common, 3.0) == 4.0
    few = plan.Structures({1: 40.0, 2: 8.0}, {1: soft, 2: hu[7]}, 1.0, 300.0)
    assert plan.derive_window(few, (-500.0, 500.0))[1] > 1500 and plan.derive_spacing(few, 3.0) == 1.0


@pytest.mark.slow
def test_the_window_follows_from_the_tumours_and_is_kept(labelled, tiny, tmp_path):
    hu = np.linspace(-100, 100, 20001)

    def window(values):
        common = plan.Structures({1: 30.0}, {1: values} if len(values) else {}, 1.0, 300.0)
        return plan.derive_window(common, (-500.0, 500.0))

    assert window(hu) == (-150.0, 150.0) and window(np.full(9, 40.0)) == (-60.0, 140.0)
    assert window(hu * 9 - 500)[0] == -1020.0 and window(np.zeros(0)) == (-500.0, 500.0)
    settings = dataclasses.replace(QUICK, steps=1)
    for given, kept in (((-160.0, 240.0), (-160.0, 240.0)), (None, (100.0, 300.0))):  # of 200 HU
        ctssl.finetune(
            labelled,
            model=tiny,
            out=tmp_path / "m",
            settings=settings,
            window_hu=given,
            overwrite=True,
            progress=False,
        )
        assert ctssl.load_segmenter(tmp_path / "m").spec.preprocess.window_hu == kept
    frozen = dataclasses.replace(settings, freeze=True)
    ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=frozen, overwrite=True, progress=False)
    assert ctssl.load_segmenter(tmp_path / "m").spec.preprocess.window_hu == (-500.0, 500.0)
    with pytest.raises(ValueError, match="window"):
        ctssl.finetune(
            labelled,
            model=tiny,
            out=tmp_path / "n",
            settings=settings,
            window_hu=(100.0, 100.0),
            progress=False,
        )


@pytest.mark.slow
def test_the_baselines_network_fits_its_crops(labelled, tmp_path):
    """nnU-Net's rule: crops of 16 voxels can be halved twice."""
    report = ctssl.finetune(
        labelled,
        model="dynunet",
        out=tmp_path / "m",
        settings=dataclasses.replace(QUICK, steps=1, ema=0.0),
        progress=False,
    )
    kept = ctssl.load_segmenter(report.folder)
    assert len(kept.head.up) == 2 and kept.window == 16


def test_a_lesion_that_hangs_together_by_edges_is_one():
    """As lesions are counted everywhere else."""
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[range(10), range(10), 5] = 1
    scan = Volume(np.zeros(mask.shape, np.float32), np.eye(4))
    found = plan.measure(scan, Volume(mask, np.eye(4)))
    assert found.diameters_mm[1] == pytest.approx((6 * 10 / np.pi) ** (1 / 3))
