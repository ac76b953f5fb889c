"""`ctssl.measure_robustness`: one call, resuming, and what has to be measured again."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import ctssl
from ctssl.evaluation.scores import RESERVED
from ctssl.robustness.masks import from_model
from ctssl.robustness.measure import left_to_see
from ctssl.robustness.run import measure_robustness
from ctssl.shifts import shift
from ctssl.volume.volume import Volume

SMALL = {"shifts": ("kernel_sharp", "truncation"), "severities": (1, 5)}


@pytest.mark.slow
def test_a_model_against_itself_and_going_on(labelled, tiny_segmenter, tmp_path, monkeypatch):
    out, scans = tmp_path / "report", tmp_path / "scans"
    calls = []
    monkeypatch.setattr(
        "ctssl.robustness.measure.shift", lambda *a, **k: calls.append(a[1]) or shift(*a, **k)
    )
    how = dict(model=tiny_segmenter, against=tiny_segmenter, out=out, scans=scans, overlays=1, **SMALL)
    found = measure_robustness(labelled, **how)
    assert found.models == ["model (1)", "model (2)"]
    assert len(calls) == 3 * 4 + 1  # every scan once for both models, and the overlay
    assert len(found.rows) == 2 * 3 * 5
    assert all(row["difference"] == 0 for row in found.against_model)
    names = {p.name for p in out.iterdir()}
    assert names == {"rows", "report.json", "report.md", "rows.csv", "curves.png", "overlays"}
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG") and len(
        list((out / "overlays").glob("*.png"))
    ) == 2
    wanted = shift(ctssl.read(labelled / "images" / "case1.nii.gz"), "kernel_sharp", severity=5)
    np.testing.assert_array_equal(ctssl.read(scans / "kernel_sharp-5" / "case1.nii.gz").array, wanted.array)

    kept = sorted((out / "rows").rglob("*.json"))
    assert len(kept) == 2 * 3 * 5
    (out / "rows" / "0" / "case0--kernel_sharp-5.json").unlink()
    calls.clear()
    again = measure_robustness(labelled, **{**how, "overlays": 0})
    assert again.plain()["rows"] == found.plain()["rows"] and calls == []  # the one scan came from the folder
    with pytest.raises(ValueError, match="by other shifts or with another seed"):
        measure_robustness(labelled, **{**how, "seed": 1, "out": tmp_path / "other"})
    with pytest.raises(ValueError, match="another model, scan, mask, seed or tolerance"):
        measure_robustness(labelled, **{**how, "seed": 1})
    wider = measure_robustness(labelled, **{**how, "tolerance_mm": 4.0, "overwrite": True, "overlays": 0})
    assert wider.tolerance_mm == 4.0 and "NSD at 4 mm" in (out / "report.md").read_text()


@pytest.mark.slow
def test_a_corrected_mask_is_not_judged_by_old_scores(labelled, tiny_segmenter, tmp_path):

    data = shutil.copytree(labelled, tmp_path / "copy")
    how = dict(
        model=tiny_segmenter, out=tmp_path / "out", shifts=("truncation",), severities=(1,), overlays=0
    )
    before = measure_robustness(data, **how)
    path = data / "labels" / "case0.nii.gz"
    mask = ctssl.read(path)
    larger = (mask.array + np.roll(mask.array, 3, 0) > 0).astype(np.uint8)
    Volume(larger, mask.affine).save(path, overwrite=True)
    with pytest.raises(ValueError, match="another model, scan, mask"):
        measure_robustness(data, **how)
    after = measure_robustness(data, **how, overwrite=True)
    for one, two in zip(before.rows, after.rows, strict=True):
        assert (one["volume_ml"] != two["volume_ml"]) == (one["case"] == "case0")


@pytest.mark.slow
def test_what_changed_is_measured_again(labelled, tiny_segmenter, tmp_path):
    """A corrected spacing, and another config beside the same weights."""
    data, other = (
        shutil.copytree(labelled, tmp_path / "copy"),
        shutil.copytree(tiny_segmenter, tmp_path / "other"),
    )
    how = dict(model=other, out=tmp_path / "out", shifts=("truncation",), severities=(1,), overlays=0)
    before = measure_robustness(data, **how)
    for path in (data / "images" / "case0.nii.gz", data / "labels" / "case0.nii.gz"):
        volume = ctssl.read(path)
        Volume(volume.array, volume.affine @ np.diag([0.5, 0.5, 0.5, 1])).save(path, overwrite=True)
    with pytest.raises(ValueError, match="another model, scan, mask"):
        measure_robustness(data, **how)
    after = measure_robustness(data, **how, overwrite=True)
    assert after.rows[0]["volume_ml"] == pytest.approx(before.rows[0]["volume_ml"] / 8, rel=0.3)
    key = [from_model(folder, "cpu").key("", "") for folder in (tiny_segmenter, other)]
    assert key[0] == key[1]
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"threshold": 0.3}))
    with pytest.raises(ValueError, match="another model, scan, mask"):
        measure_robustness(data, **how)
    net = ctssl.load_segmenter(tiny_segmenter)
    before_that = from_model(net, "cpu").key("", "")
    net.threshold = 0.3
    assert from_model(net, "cpu").key("", "") != before_that
    with pytest.raises(ValueError, match="a Linear is no segmenter of ctssl"):
        measure_robustness(data, **{**how, "model": torch.nn.Linear(1, 1), "out": tmp_path / "new"})
    with pytest.raises(FileExistsError, match="something else than a robustness report"):
        measure_robustness(data, **{**how, "out": other}, overwrite=True)


@pytest.mark.slow
def test_what_a_shift_leaves_to_see_is_said(labelled, tiny_segmenter, tmp_path):
    found = measure_robustness(
        labelled,
        model=tiny_segmenter,
        out=tmp_path / "out",
        shifts=("truncation", "thickness"),
        severities=(1, 5),
        overlays=0,
    )
    for row in found.rows:
        scan, truth = (ctssl.read(labelled / kind / f"{row['case']}.nii.gz") for kind in ("images", "labels"))
        cut = row["shift"] == "truncation"
        seen = shift(scan, "truncation", severity=row["severity"]).array > -1024 if cut else truth.array >= 0
        perfect = (truth.array == 1) & (seen | (scan.array <= -1024))
        assert row["best_dsc"] == pytest.approx(ctssl.metrics.dsc(perfect, truth.array == 1))
        assert row["unchanged"] == ((row["shift"], row["severity"]) == ("thickness", 1))
    least = min(row["best_dsc"] for row in found.rows)
    assert (
        least < 1
        and "no mask can have a DSC above" in found.markdown()
        and f"{least:.2f}" in found.markdown()
    )
    assert "thickness 1 leaves 3 of 3 scans as they are" in found.markdown()


def test_what_is_labelled_in_air_is_not_cut_off(labelled):
    """Noise and sharp kernels end at -1024 HU, where truncation begins."""
    scan, truth = (ctssl.read(labelled / kind / "case0.nii.gz") for kind in ("images", "labels"))
    seen = replace(scan, array=np.where(truth.array > 0, np.float32(-1024), scan.array))
    assert left_to_see(scan, seen, truth, 1, "dose") == {"best_dsc": 1.0, "unchanged": False}
    assert left_to_see(scan, seen, truth, 1, "truncation")["best_dsc"] == 0.0


@pytest.mark.slow
def test_every_column_is_taken(labelled, tiny_segmenter, tmp_path):
    """A stratum of the same name would replace it."""
    found = measure_robustness(
        labelled,
        model=tiny_segmenter,
        out=tmp_path / "out",
        shifts=("truncation",),
        severities=(1,),
        overlays=0,
    )
    assert set().union(*found.rows) <= RESERVED


@pytest.mark.slow
def test_a_reader_is_told_of_training_cases(labelled, tiny_segmenter, tmp_path):

    trained = shutil.copytree(tiny_segmenter, tmp_path / "trained")
    (trained / "report.json").write_text(json.dumps({"train": ["case0", "case1"]}))
    how = dict(model=trained, shifts=("truncation",), severities=(1,), overlays=0)
    found = measure_robustness(labelled, out=tmp_path / "a", **how)
    assert "was trained on 2 of these 3 cases" in found.markdown()
    held = measure_robustness(labelled, out=tmp_path / "b", cases=["case2"], **how)
    assert not any("was trained on" in note for note in held.notes) and {
        row["case"] for row in held.rows
    } == {"case2"}


@pytest.mark.slow
def test_a_report_is_not_replaced_by_one_that_lacks_some_of_it(labelled, tiny_segmenter, tmp_path):
    how = dict(model=tiny_segmenter, out=tmp_path / "report", shifts=("thickness",))
    measure_robustness(labelled, **how, severities=(1,), cases=["case0"])
    before = (tmp_path / "report" / "rows.csv").read_bytes()
    for less in (dict(severities=(5,), cases=["case0"]), dict(severities=(1,), cases=["case1"])):
        with pytest.raises(FileExistsError, match="holds a report of .* more results, such as model case0"):
            measure_robustness(labelled, **how, **less)
        assert (tmp_path / "report" / "rows.csv").read_bytes() == before
    wider = measure_robustness(labelled, **how, severities=(1, 5), cases=["case0", "case1"])
    assert len(wider.rows) == 2 * 3
