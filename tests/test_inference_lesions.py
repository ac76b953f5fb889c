"""Features of lesions, and of every place of a scan."""

import csv
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

import ctssl
from ctssl.cli import main
from ctssl.inference import lesions as inference
from ctssl.inference.lesions import embed_lesions
from ctssl.volume.volume import Volume


@pytest.fixture
def lesions(ball) -> Volume:
    """Two pieces of label 1, the second the larger, and one voxel of label 3."""
    array = np.zeros(ball[0].shape, np.uint8)
    array[4:6, 4:6, 4:6] = 1
    array[18:26, 8:16, 4:10] = 1
    array[30, 20, 12] = 3
    return Volume(array, ball[0].affine)


def test_a_row_for_each_lesion_the_largest_first(tiny, ball, lesions):
    found = embed_lesions(tiny, ball[0], lesions)
    assert [(one.label, one.number) for one in found] == [(1, 1), (1, 2), (3, 1)]
    voxel = np.prod(ball[0].spacing_mm) / 1000
    np.testing.assert_allclose([one.volume_ml for one in found], [8 * 8 * 6 * voxel, 8 * voxel, voxel])
    np.testing.assert_allclose(found[2].centre_mm, (ball[0].affine @ [30, 20, 12, 1])[:3])
    assert all(one.vector.shape == (sum(tiny.channels),) and one.vector.isfinite().all() for one in found)
    assert torch.equal(tiny.embed(ball[0], mask=lesions), torch.stack([one.vector for one in found]))
    assert [(one.label, one.number) for one in embed_lesions(tiny, ball[0], lesions, by="label")] == [
        (1, 0),
        (3, 0),
    ]


def test_the_mean_is_that_of_the_places_that_the_lesion_fills(tiny, ball):
    """A mask that fills whole places of every map, on a scan that already is on the working grid."""
    scan = Volume(
        np.random.default_rng(0).normal(0, 100, (32, 32, 32)).astype(np.float32), np.diag([2.0, 2, 2, 1])
    )
    mask = np.zeros(scan.shape, np.uint8)
    mask[8:24, :, :] = 1
    (lesion,) = embed_lesions(tiny, scan, Volume(mask, scan.affine))
    maps = tiny.feature_maps(scan)
    expected, at = [], 0
    for features in maps:
        n = features.array.shape[1]
        expected.append(features.array[:, n // 4 : n * 3 // 4].mean((1, 2, 3)))
    for mean, features in zip(expected, maps, strict=True):
        mine, at = lesion.vector[at : at + len(mean)], at + len(mean)
        edge = (
            2 * features.array.std() / features.array.shape[1]
        )  # a triangle reaches over the border of a place
        np.testing.assert_allclose(mine, mean, atol=edge)


def test_maps_lie_where_the_scan_lies(tiny, ball):
    for features, stride in zip(tiny.feature_maps(ball[0]), tiny.strides, strict=True):
        step = np.abs(features.affine[:3, :3]).max(0)
        np.testing.assert_allclose(step, 2.0 * stride)
        corner = features.affine @ [-0.5, -0.5, -0.5, 1]  # of the first place, and of the scan
        np.testing.assert_allclose(corner[:3], (ball[0].affine @ [-0.5, -0.5, -0.5, 1])[:3], atol=1.0)


def test_masks_that_do_not_fit_are_refused(tiny, ball, lesions):
    with pytest.raises(ValueError, match="resample the mask"):
        tiny.embed(ball[0], mask=Volume(lesions.array[1:], lesions.affine))
    with pytest.raises(ValueError, match="use lesion or label"):
        embed_lesions(tiny, ball[0], lesions, by="voxel")
    assert tiny.embed(ball[0], mask=Volume(np.zeros_like(lesions.array), lesions.affine)).shape == (
        0,
        sum(tiny.channels),
    )


def test_the_command_writes_tables_and_maps(scans, lesions, tiny_folder, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    for name in "abc":
        lesions.save(tmp_path / "masks" / f"{name}.nii.gz")
    model, table = ["--model", str(tiny_folder)], tmp_path / "lesions.csv"
    assert main(["embed", str(scans), str(table), "--mask", str(tmp_path / "masks"), *model]) == 0
    rows = list(csv.DictReader(table.open()))
    assert [(row["scan"], row["label"], row["lesion"]) for row in rows[:4]] == [
        ("a", "1", "1"),
        ("a", "1", "2"),
        ("a", "3", "1"),
        ("b", "1", "1"),
    ]
    assert len(rows) == 9 and f"f{sum(ctssl.load(tiny_folder).channels) - 1}" in rows[0]
    assert rows[0]["model"] == rows[-1]["model"] and "sha256:" in rows[0]["model"]
    ctssl.Volume(np.zeros(lesions.shape, np.uint8), lesions.affine).save(
        tmp_path / "masks" / "b.nii.gz", overwrite=True
    )
    two = ["embed", str(scans), str(tmp_path / "two.csv"), "--mask", str(tmp_path / "masks"), *model]
    assert main(two) == 0 and "no row for 1 scans whose masks are empty: b" in capsys.readouterr().err
    assert main(["embed", str(scans), str(tmp_path / "scans.csv"), *model]) == 0
    rows = list(csv.DictReader((tmp_path / "scans.csv").open()))
    vector = ctssl.load(tiny_folder).embed(scans / "b.nii.gz")
    np.testing.assert_allclose(
        [float(rows[1][f"f{i}"]) for i in range(len(vector))], vector, rtol=1e-4, atol=1e-5
    )
    assert (
        main(
            ["embed", str(scans / "a.nii.gz"), str(tmp_path / "map.nii.gz"), "--dense", "--map", "0", *model]
        )
        == 0
    )
    image, first = (
        nibabel.load(tmp_path / "map.nii.gz"),
        ctssl.load(tiny_folder).feature_maps(scans / "a.nii.gz")[0],
    )
    np.testing.assert_allclose(np.moveaxis(image.get_fdata(), -1, 0), first.array, atol=1e-6)
    np.testing.assert_allclose(image.affine, first.affine, atol=1e-5)
    for wrong, words in (
        ([str(scans)], "OUT.csv"),
        ([str(scans / "a.nii.gz"), str(tmp_path / "x.nii.gz"), "--dense", "--map", "9"], "0 (finest)"),
        ([str(scans / "a.nii.gz"), "--dense"], "OUT.nii.gz"),
        (
            [
                str(scans / "a.nii.gz"),
                str(tmp_path / "x.npy"),
                "--mask",
                str(tmp_path / "masks" / "a.nii.gz"),
            ],
            ".csv",
        ),
    ):
        capsys.readouterr()
        assert main(["embed", *wrong, *model]) == 2 and words in capsys.readouterr().err


def test_a_small_lesion_between_the_places_of_a_map_counts_where_it_is(monkeypatch):
    """A map that holds its own coordinates: the mean over a lesion is its centre, wherever it lies between the places."""
    cell = 12.0
    places = np.stack(np.meshgrid(*[np.arange(8) * cell] * 3, indexing="ij")).astype(np.float32)
    scan = Volume(np.zeros((56, 56, 56), np.float32), np.diag([1.5, 1.5, 1.5, 1.0]))
    monkeypatch.setattr(inference, "read_for", lambda *_, **__: scan)
    monkeypatch.setattr(inference, "encode", lambda *_, **__: (scan, [torch.from_numpy(places)]))
    monkeypatch.setattr(inference, "map_affines", lambda *_: [np.diag([cell, cell, cell, 1.0])])
    for first in np.random.default_rng(0).integers(18, 30, (5, 3)):
        mask = np.zeros(scan.shape, np.uint8)
        mask[tuple(slice(n, n + 6) for n in first)] = 1
        (lesion,) = embed_lesions(SimpleNamespace(strides=(8,)), scan, Volume(mask, scan.affine))
        np.testing.assert_allclose(lesion.vector, lesion.centre_mm, atol=0.1)
