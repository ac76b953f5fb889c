"""Strata, and pairs of scans of one patient."""

import math

import numpy as np
import pytest

import ctssl
from ctssl.robustness import pairs
from ctssl.robustness.run import measure_robustness
from ctssl.shifts import shift
from ctssl.volume.volume import Volume


@pytest.mark.slow
def test_strata_and_pairs(labelled, tiny_segmenter, tmp_path):
    (tmp_path / "cases.csv").write_text(
        "id,patient,kernel\ncase0,p0,SOFT\ncase1,p0,SOFT\ncase2,p1,STANDARD\n"
    )
    scan = ctssl.read(labelled / "images" / "case0.nii.gz")
    cut = Volume(
        np.ascontiguousarray(shift(scan, "kernel_sharp", severity=2).array[:, 1:]), scan.affine.copy()
    )
    cut.affine[1, 3] += scan.spacing_mm[1]
    cut.save(tmp_path / "sharp.nii.gz")
    scan.save(tmp_path / "smooth.nii.gz")
    (tmp_path / "pairs.csv").write_text(
        "first,second\nsmooth.nii.gz,sharp.nii.gz\nsmooth.nii.gz,smooth.nii.gz\n"
    )
    found = measure_robustness(
        labelled,
        model=tiny_segmenter,
        out=tmp_path / "out",
        by=("kernel",),
        table=tmp_path / "cases.csv",
        pairs=tmp_path / "pairs.csv",
        shifts=("kernel_sharp",),
        severities=(3,),
        overlays=0,
    )
    assert [(row["stratum"], row["cases"]) for row in found.strata] == [
        ("kernel SOFT", 2),
        ("kernel STANDARD", 1),
    ]
    assert {row["patient"] for row in found.rows} == {"p0", "p1"}
    other, same = found.pairs
    assert (other["pair"], same["pair"]) == ("smooth, sharp", "smooth, smooth")
    assert (
        same["dsc"] == 1
        and same["embedding_cosine"] == pytest.approx(1)
        and same["embedding_concordance"] == pytest.approx(1)
    )
    masks = [ctssl.load_segmenter(tiny_segmenter).segment(s) for s in (scan, cut)]
    first, second = masks[0].array[:, 1:] == 1, masks[1].array == 1  # the second scan lies one row further on
    assert first.any() and other["dsc"] == pytest.approx(ctssl.metrics.dsc(first, second), abs=1e-9)
    assert other["first_ml"] == pytest.approx(first.sum() * scan.voxel_ml)
    a, b = other["first_ml"], other["second_ml"]
    assert a != b and other["volume_difference"] == pytest.approx(2 * (b - a) / (a + b))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "pairs" / "0").iterdir()}
    (tmp_path / "pairs.csv").write_text(
        "first,second\nsmooth.nii.gz,smooth.nii.gz\nsmooth.nii.gz,sharp.nii.gz\n"
    )
    alone = dict(model=tiny_segmenter, out=tmp_path / "out", pairs=tmp_path / "pairs.csv")
    with pytest.raises(
        FileExistsError, match="holds a report of scans under shifts, which this one would replace"
    ):
        measure_robustness(**alone)
    again = measure_robustness(**alone, overwrite=True)
    with pytest.raises(FileExistsError, match="holds a report of pairs"):
        measure_robustness(
            labelled, model=tiny_segmenter, out=tmp_path / "out", shifts=("dose",), severities=(1,)
        )
    assert (
        again.pairs == [same, other]
        and {path: path.stat().st_mtime_ns for path in kept} == kept
        and len(kept) == 2
    )
    assert not (tmp_path / "out" / "rows.csv").exists()  # of the run before
    assert 0 < other["embedding_concordance"] < 1 - 1e-6
    assert math.isnan(found.pairs_summary[0]["volume_concordance"]) and found.pairs_summary[0]["pairs"] == 2
    assert "## Two reconstructions" in (tmp_path / "out" / "report.md").read_text()
    cut.affine[0, 3] += 5000
    cut.save(tmp_path / "sharp.nii.gz", overwrite=True)
    with pytest.raises(ValueError, match="lies beside the first one"):
        measure_robustness(model=tiny_segmenter, pairs=tmp_path / "pairs.csv", out=tmp_path / "beside")
    cut.affine[0, 3] -= 5000
    cut.save(tmp_path / "sharp.nii.gz", overwrite=True)
    alone = measure_robustness(model=tiny_segmenter, pairs=tmp_path / "pairs.csv", out=tmp_path / "alone")
    assert not alone.rows and len(alone.pairs) == 2


def test_pairs_of_the_same_file_names_stay_apart(tmp_path):
    for patient in "ab":
        (tmp_path / patient).mkdir()
        for name in ("smooth", "sharp"):
            (tmp_path / patient / f"{name}.nii.gz").write_bytes(b"")
    text = "first,second\na/smooth.nii.gz,a/sharp.nii.gz\nb/smooth.nii.gz,b/sharp.nii.gz\n"
    (tmp_path / "pairs.csv").write_text(text)
    names = [name for name, *_ in pairs.find_pairs(tmp_path / "pairs.csv")]
    assert names == ["a/smooth.nii.gz, a/sharp.nii.gz", "b/smooth.nii.gz, b/sharp.nii.gz"]
    (tmp_path / "pairs.csv").write_text(text + "b/smooth.nii.gz,b/sharp.nii.gz\n")
    with pytest.raises(ValueError, match="more than once"):
        pairs.find_pairs(tmp_path / "pairs.csv")


def test_volumes_agree_label_by_label():
    """Organs of different size would agree with each other whatever a model says."""
    rows = [
        {
            "pair": str(i),
            "label": label,
            "first_ml": size * a,
            "second_ml": size * b,
            "volume_difference": 0.0,
            "dsc": 1.0,
            "embedding_cosine": 1.0,
            "embedding_concordance": 1.0,
        }
        for label, size in ((1, 1.0), (2, 1000.0))
        for i, (a, b) in enumerate([(1, 3), (2, 2), (3, 1)])
    ]
    assert pairs.summarise(rows)["volume_concordance"] == pytest.approx(-1.0)
    absent = [
        {**row, "label": 3, "first_ml": 0.0, "second_ml": 0.0} for row in rows[:3]
    ]  # found nowhere: it says nothing
    assert pairs.summarise(rows + absent)["volume_concordance"] == pytest.approx(-1.0)


def test_concordance_by_hand():
    x = np.array([1.0, 2.0, 3.0])
    assert pairs.concordance(x, x) == pytest.approx(1.0)
    assert pairs.concordance(x, x + 1) == pytest.approx(2 * (2 / 3) / (4 / 3 + 1))
    assert pairs.concordance(x, x[::-1]) == pytest.approx(-1.0)
    assert math.isnan(pairs.concordance(np.ones(3), np.ones(3)))


def test_a_pair_is_found_by_the_fields_of_its_specs():
    wild, own = ctssl.pair("swin", "mim")
    assert (wild.corpus, own.corpus) == ("wild", "self") and wild.encoder == own.encoder == "swin"
    assert ctssl.info(wild.name) is wild and ctssl.info(own.name) is own
    with pytest.raises(
        ValueError, match=r"no pair of models for \('swin', 'dino'\); use one of .*\('swin', 'mim'\)"
    ):
        ctssl.pair("swin", "dino")


def test_millilitres_of_a_tilted_scan_are_those_of_its_voxels():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 2 * np.tan(np.radians(30))
    mask = np.zeros((10, 10, 10), np.float32)
    mask[2:5, 2:5, 2:5] = 1
    one = Volume(mask, affine)
    found = pairs._masks(one, one, np.ones(mask.shape, bool), label=1)
    assert found["first_ml"] == found["second_ml"] == pytest.approx(27 * 2 / 1000)
