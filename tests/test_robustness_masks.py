"""Masks of another tool."""

import json
import math

import numpy as np
import pytest

import ctssl
from ctssl.cli.main import main
from ctssl.robustness.run import measure_robustness
from ctssl.volume.volume import Volume
from tests.support.command import refused


@pytest.mark.slow
def test_masks_of_another_tool(labelled, tiny_segmenter, tmp_path, capsys):
    """Written by a threshold on what `ctssl shift --every` wrote."""
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    chosen = ["--shifts", "kernel_smooth", "truncation", "--severities", "5"]
    assert main(["shift", str(labelled / "images"), str(scans), "--every", *chosen]) == 0
    assert sorted(p.name for p in scans.iterdir()) == ["clean", "kernel_smooth-5", "truncation-5"]
    for path in scans.rglob("*.nii.gz"):
        scan = ctssl.read(path)
        target = masks / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Volume((scan.array > 160).astype(np.uint8), scan.affine).save(target)
    out = tmp_path / "report"
    capsys.readouterr()
    args = ["robustness", str(labelled), "--predictions", str(masks), "--out", str(out), *chosen]
    assert main([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    clean = [row["dsc"] for row in found["rows"] if row["shift"] == "clean"]
    assert clean == [1.0] * 3
    smooth = [row["dsc"] for row in found["rows"] if row["shift"] == "kernel_smooth"]
    assert len(smooth) == 3 and all(value < 0.99 for value in smooth)
    assert found["against_model"] == [] and found["overview"][0]["cases"] == 3

    seen = ctssl.read(masks / "truncation-5" / "case0.nii.gz")
    Volume(np.zeros(seen.shape, np.uint8), seen.affine).save(
        masks / "truncation-5" / "case0.nii.gz", overwrite=True
    )
    how = dict(shifts=("truncation",), severities=(5,), overlays=0)
    changed = measure_robustness(labelled, predictions=masks, out=tmp_path / "two", **how)
    (masks / "clean" / "case0.nii.gz").rename(masks / "clean" / "case0.NII.GZ")
    again = measure_robustness(labelled, predictions=masks, out=tmp_path / "two", **how)
    assert [row["dsc"] for row in again.rows] == [row["dsc"] for row in changed.rows]
    (masks / "clean" / "case0.NII.GZ").rename(masks / "clean" / "case0.nii.gz")
    empty = [row for row in changed.rows if row["case"] == "case0" and row["severity"] == 5]
    assert empty[0]["dsc"] == 0 and math.isnan(empty[0]["hd95_mm"])
    both = measure_robustness(labelled, model=tiny_segmenter, predictions=masks, out=tmp_path / "both", **how)
    assert both.models == ["model", "masks"] and {row["metric"] for row in both.against_model} >= {
        "dsc",
        "dsc_lost",
    }
    seen = ctssl.read(
        masks / "clean" / "case1.nii.gz"
    )  # one mask of another numbering, or of another structure
    Volume(seen.array * 2, seen.affine).save(masks / "clean" / "case1.nii.gz", overwrite=True)
    noted = measure_robustness(labelled, predictions=masks, out=tmp_path / "noted", **how).notes
    assert any(
        "1 masks of masks hold labels, but none that a true mask has (first clean/case1.nii.gz)" in n
        for n in noted
    )
    seen.affine[0, 3] += 30
    seen.save(masks / "clean" / "case1.nii.gz", overwrite=True)
    with pytest.raises(
        ValueError, match=r"clean.case1.nii.gz: .*their affines differ, corners are up to 30.0 mm apart"
    ):
        measure_robustness(labelled, predictions=masks, out=tmp_path / "moved", **how)
    seen.affine[0, 3] -= 30
    seen.save(masks / "clean" / "case1.nii.gz", overwrite=True)
    for wrong, words in ((254, r"hold the labels \[.*254\]"), (0.9, "holds fractions")):
        for path in masks.rglob("*.nii.gz"):
            seen = ctssl.read(path)
            Volume((seen.array > 0) * np.float32(wrong), seen.affine).save(path, overwrite=True)
        with pytest.raises(ValueError, match=words):
            measure_robustness(labelled, predictions=masks, out=tmp_path / "three", **how)
    found = ctssl.measure_robustness(
        labelled, model=tiny_segmenter, scans=scans, out=tmp_path / "kept", **how
    )
    assert {row["severity"] for row in found.rows} == {
        0,
        5,
    }  # the scans that the command wrote serve here too
    (scans / "truncation-5" / "case0.nii.gz").write_bytes(
        (scans / "truncation-5" / "case1.nii.gz").read_bytes()
    )
    with pytest.raises(ValueError, match="made from another scan"):
        ctssl.measure_robustness(labelled, model=tiny_segmenter, scans=scans, out=tmp_path / "mixed", **how)
    (masks / "clean" / "case2.nii.gz").unlink()
    assert "lacks 1 masks, first clean/case2.nii.gz" in refused(capsys, *args, "--overwrite")
