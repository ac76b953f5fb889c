"""`ctssl.measure_robustness` and the commands `shift` and `robustness`: numbers by hand, resuming, other tools' masks."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import ctssl
from ctssl import evaluation, robustness
from ctssl.cli.main import main
from ctssl.heads.segmenter import Segmenter
from ctssl.robustness import curves
from ctssl.robustness import pairs as agreement
from ctssl.robustness.masks import from_model
from ctssl.robustness.run import measure_robustness
from ctssl.shifts import shift, stamps
from ctssl.volume.volume import Volume

SMALL = {"shifts": ("kernel_sharp", "truncation"), "severities": (1, 5)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    encoder = ctssl.Swin(12, depths=(1, 1), heads=(2, 4), window=4, patch=2, merge_last=False)
    return Segmenter(encoder, head="linear", window=32).save_pretrained(
        tmp_path_factory.mktemp("models") / "model"
    )


def refused(capsys, *args) -> str:
    assert main([str(a) for a in args]) == 2
    words = capsys.readouterr().err
    assert "Traceback" not in words
    return words


def rows(scores: dict[int, list[float]], model="a", shift="dose") -> list[dict]:
    """By severity the DSC of the cases c0, c1, ...; 0 is clean."""
    return [
        {
            "model": model,
            "case": f"c{i}",
            "patient": f"c{i}",
            "shift": shift if severity else "clean",
            "severity": severity,
            "label": 1,
            "dsc": value,
            "nsd": value,
            "hd95_mm": 1.0,
            "lesions": 1,
            "lesions_found": 1,
            "false_positives": 0,
            "volume_ml": 1.0 + i,
        }
        for severity, values in scores.items()
        for i, value in enumerate(values)
    ]


def test_areas_and_falls_by_hand():
    assert curves.area([0, 1, 3, 5], [1.0, 0.8, 0.6, 0.2]) == pytest.approx((0.9 + 2 * 0.7 + 2 * 0.4) / 5)
    assert curves.area([0, 1, 5], [0.7, 0.7, 0.7]) == pytest.approx(0.7)
    mine = rows({0: [0.9, 0.8], 1: [0.8, 0.8], 5: [0.4, 0.6]})
    each = curves.areas(mine, "a", "dose")
    assert [row["dsc"] for row in each] == pytest.approx([(0.85 + 4 * 0.6) / 5, (0.8 + 4 * 0.7) / 5])
    assert each[0]["dsc_lost"] == pytest.approx(0.9 - 0.65)
    (seen,) = curves.overview(mine, ["a"], ["dose"])
    assert (seen["clean_dsc"], seen["worst_dsc"], seen["at_severity"]) == (
        pytest.approx(0.85),
        pytest.approx(0.5),
        5,
    )
    assert (seen["worst_case"], seen["from_dsc"], seen["to_dsc"]) == ("c0", 0.9, 0.4)
    (better,) = curves.overview(rows({0: [0.5, 0.5], 1: [0.7, 0.7], 5: [0.6, 0.8]}), ["a"], ["dose"])
    assert (better["worst_dsc"], better["at_severity"]) == (
        pytest.approx(0.7),
        1,
    )  # of the severities, not of the clean scan
    assert [point["severity"] for point in curves.curve(mine, "a", "dose")] == [0, 1, 5]


def test_paired_tests_need_six_cases_and_are_corrected_over_the_table():
    better = rows({0: [0.9] * 8, 3: [0.8 + i / 100 for i in range(8)]}, "a")
    worse = rows({0: [0.9] * 8, 3: [0.6 - i / 100 for i in range(8)]}, "b")
    found = curves.against_model(better + worse, "a", "b", ["dose"])
    table = {(row["shift"], row["metric"]): row for row in found}
    off = (0.2 + 2 * 3.5 / 100) / 2
    assert table["dose", "dsc"]["difference"] == pytest.approx(off)
    assert table["dose", "dsc_lost"]["difference"] == pytest.approx(-off)
    assert math.isnan(table["clean", "dsc"]["p"])  # the same: no test
    tested = [row for row in found if not math.isnan(row["p"])]
    assert len(tested) == 3 and all(row["p"] == pytest.approx(2 / 2**8) for row in tested)
    assert table["dose", "dsc"]["p_holm"] == pytest.approx(3 * 2 / 2**8)
    few = [row for row in better + worse if row["case"] in ("c0", "c1", "c2", "c3", "c4")]
    assert all(math.isnan(row["p"]) for row in curves.against_model(few, "a", "b", ["dose"]))
    down = {row["metric"]: row for row in curves.against_clean(better, "a", ["dose"])}
    assert down["dsc"]["difference"] < 0 and down["dsc"]["patients"] == 8


def test_a_model_against_itself_and_going_on(labelled, model, tmp_path, monkeypatch):
    out, scans = tmp_path / "report", tmp_path / "scans"
    calls = []
    monkeypatch.setattr("ctssl.robustness.shift", lambda *a, **k: calls.append(a[1]) or shift(*a, **k))
    how = dict(model=model, against=model, out=out, scans=scans, overlays=1, **SMALL)
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


def test_holm_is_over_the_whole_table():
    several = [
        row
        for name, less in (("a", 0.1), ("b", 0.11), ("c", 0.12))
        for row in rows({0: [0.9] * 8, 3: [0.9 - less - i / 100 for i in range(8)]}, name)
    ]
    found = robustness.tables(several, ["a", "b", "c"], ["dose"], (), 2.0)
    for table in (found.against_clean, found.against_model):
        assert [row["p_holm"] for row in table] == pytest.approx(
            evaluation.holm([row["p"] for row in table]), nan_ok=True
        )
        assert len({row.get("against", row["model"]) for row in table}) > 1


def test_masks_of_another_tool(labelled, model, tmp_path, capsys):
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
    empty = [row for row in changed.rows if row["case"] == "case0" and row["severity"] == 5]
    assert empty[0]["dsc"] == 0 and math.isnan(empty[0]["hd95_mm"])
    both = measure_robustness(labelled, model=model, predictions=masks, out=tmp_path / "both", **how)
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
        ValueError, match=r"clean.case1.nii.gz: .*their affines differ, corners lie up to 30.0 mm apart"
    ):
        measure_robustness(labelled, predictions=masks, out=tmp_path / "moved", **how)
    seen.affine[0, 3] -= 30
    seen.save(masks / "clean" / "case1.nii.gz", overwrite=True)
    for wrong, words in ((255, r"hold the labels \[.*255\]"), (0.9, "holds fractions")):
        for path in masks.rglob("*.nii.gz"):
            seen = ctssl.read(path)
            Volume((seen.array > 0) * np.float32(wrong), seen.affine).save(path, overwrite=True)
        with pytest.raises(ValueError, match=words):
            measure_robustness(labelled, predictions=masks, out=tmp_path / "three", **how)
    found = ctssl.measure_robustness(labelled, model=model, scans=scans, out=tmp_path / "kept", **how)
    assert {row["severity"] for row in found.rows} == {
        0,
        5,
    }  # the scans that the command wrote serve here too
    (scans / "truncation-5" / "case0.nii.gz").write_bytes(
        (scans / "truncation-5" / "case1.nii.gz").read_bytes()
    )
    with pytest.raises(ValueError, match="made of another scan"):
        ctssl.measure_robustness(labelled, model=model, scans=scans, out=tmp_path / "mixed", **how)
    (masks / "clean" / "case2.nii.gz").unlink()
    assert "lacks 1 masks, first clean/case2.nii.gz" in refused(capsys, *args, "--overwrite")


def test_strata_and_pairs(labelled, model, tmp_path):
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
        model=model,
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
    masks = [ctssl.load_segmenter(model).segment(s) for s in (scan, cut)]
    first, second = masks[0].array[:, 1:] == 1, masks[1].array == 1  # the second scan lies one row further on
    assert first.any() and other["dsc"] == pytest.approx(ctssl.metrics.dsc(first, second), abs=1e-9)
    assert other["first_ml"] == pytest.approx(ctssl.metrics.volume_ml(first, spacing_mm=scan.spacing_mm))
    a, b = other["first_ml"], other["second_ml"]
    assert a != b and other["volume_difference"] == pytest.approx(2 * (b - a) / (a + b))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "pairs" / "0").iterdir()}
    (tmp_path / "pairs.csv").write_text(
        "first,second\nsmooth.nii.gz,smooth.nii.gz\nsmooth.nii.gz,sharp.nii.gz\n"
    )
    again = measure_robustness(model=model, out=tmp_path / "out", pairs=tmp_path / "pairs.csv")
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
        measure_robustness(model=model, pairs=tmp_path / "pairs.csv", out=tmp_path / "beside")
    cut.affine[0, 3] -= 5000
    cut.save(tmp_path / "sharp.nii.gz", overwrite=True)
    alone = measure_robustness(model=model, pairs=tmp_path / "pairs.csv", out=tmp_path / "alone")
    assert not alone.rows and len(alone.pairs) == 2


def test_a_corrected_mask_is_not_judged_by_old_scores(labelled, model, tmp_path):

    data = shutil.copytree(labelled, tmp_path / "copy")
    how = dict(model=model, out=tmp_path / "out", shifts=("truncation",), severities=(1,), overlays=0)
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


def test_what_changed_is_measured_again(labelled, model, tmp_path):
    """A corrected spacing, and another config beside the same weights."""
    data, other = shutil.copytree(labelled, tmp_path / "copy"), shutil.copytree(model, tmp_path / "other")
    how = dict(model=other, out=tmp_path / "out", shifts=("truncation",), severities=(1,), overlays=0)
    before = measure_robustness(data, **how)
    for path in (data / "images" / "case0.nii.gz", data / "labels" / "case0.nii.gz"):
        volume = ctssl.read(path)
        Volume(volume.array, volume.affine @ np.diag([0.5, 0.5, 0.5, 1])).save(path, overwrite=True)
    with pytest.raises(ValueError, match="another model, scan, mask"):
        measure_robustness(data, **how)
    after = measure_robustness(data, **how, overwrite=True)
    assert after.rows[0]["volume_ml"] == pytest.approx(before.rows[0]["volume_ml"] / 8, rel=0.3)
    key = [from_model(folder, "cpu").key("", "") for folder in (model, other)]
    assert key[0] == key[1]
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"threshold": 0.3}))
    with pytest.raises(ValueError, match="another model, scan, mask"):
        measure_robustness(data, **how)
    net = ctssl.load_segmenter(model)
    before_that = from_model(net, "cpu").key("", "")
    net.threshold = 0.3
    assert from_model(net, "cpu").key("", "") != before_that
    with pytest.raises(ValueError, match="a Linear is no segmenter of ctssl"):
        measure_robustness(data, **{**how, "model": torch.nn.Linear(1, 1), "out": tmp_path / "new"})
    with pytest.raises(FileExistsError, match="something else than a robustness report"):
        measure_robustness(data, **{**how, "out": other}, overwrite=True)


def test_what_a_shift_leaves_to_see_is_said(labelled, model, tmp_path):
    found = measure_robustness(
        labelled,
        model=model,
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
    assert robustness.left_to_see(scan, seen, truth, 1, "dose") == {"best_dsc": 1.0, "unchanged": False}
    assert robustness.left_to_see(scan, seen, truth, 1, "truncation")["best_dsc"] == 0.0


def test_every_column_is_taken(labelled, model, tmp_path):
    """A stratum of the same name would replace it."""
    found = measure_robustness(
        labelled, model=model, out=tmp_path / "out", shifts=("truncation",), severities=(1,), overlays=0
    )
    assert set().union(*found.rows) <= evaluation.TAKEN


def test_stamps_are_short_and_tell_what_differs():
    several = dict.fromkeys(ctssl.shifts.SHIFTS, 5)
    long = stamps.stamp_of(stamps.together(several), 10**30, "a" * 64)
    assert len(long) <= 79 and long != stamps.stamp_of(stamps.together(several), 10**30 + 1, "a" * 64)
    assert (
        stamps.together({"thickness": 4, "dose": 2})
        == stamps.together({"dose": 2, "thickness": 4})
        == "dose-2+thickness-4"
    )
    for digits in range(40):
        heads = {stamps.stamp_of("dose-2", 10**digits, scan).rpartition(" of ")[0] for scan in ("a" * 64, "")}
        assert len(heads) == 1, digits
    one = stamps.stamp_of("dose-2", 0, "a" * 64)
    others = {
        "other shifts": ("dose-3", 0, "a" * 64),
        "seed": ("dose-2", 1, "a" * 64),
        "another scan": ("dose-2", 0, "b" * 64),
    }
    for words, other in others.items():
        assert words in stamps.differs(stamps.stamp_of(*other), one)
    assert "version" in stamps.differs(
        one.replace(" by ", " by 1"), one
    ) and "nothing proves" in stamps.differs("", one)
    assert stamps.differs(one, one) == ""


def test_a_shift_is_added_by_one_line(labelled, tmp_path, monkeypatch, capsys):
    def motion(volume, severity, rng):
        """Shaking, 1 to 5 mm.

        Model: none."""
        return volume.array + np.float32(severity)

    monkeypatch.setitem(ctssl.shifts.SHIFTS, "motion", motion)
    source, out = labelled / "images" / "case0.nii.gz", tmp_path / "out.nii.gz"
    assert main(["shift", str(source), str(out), "--motion", "2"]) == 0
    np.testing.assert_array_equal(ctssl.read(out).array, ctssl.read(source).array + 2)
    with pytest.raises(SystemExit):
        main(["shift", "--help"])
    assert "Shaking, 1 to 5 mm" in " ".join(capsys.readouterr().out.split())


def test_pairs_of_the_same_file_names_stay_apart(tmp_path):
    for patient in "ab":
        (tmp_path / patient).mkdir()
        for name in ("smooth", "sharp"):
            (tmp_path / patient / f"{name}.nii.gz").write_bytes(b"")
    text = "first,second\na/smooth.nii.gz,a/sharp.nii.gz\nb/smooth.nii.gz,b/sharp.nii.gz\n"
    (tmp_path / "pairs.csv").write_text(text)
    names = [name for name, *_ in agreement.find_pairs(tmp_path / "pairs.csv")]
    assert names == ["a/smooth.nii.gz, a/sharp.nii.gz", "b/smooth.nii.gz, b/sharp.nii.gz"]
    (tmp_path / "pairs.csv").write_text(text + "b/smooth.nii.gz,b/sharp.nii.gz\n")
    with pytest.raises(ValueError, match="more than once"):
        agreement.find_pairs(tmp_path / "pairs.csv")


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
    assert agreement.summarise(rows)["volume_concordance"] == pytest.approx(-1.0)
    absent = [
        {**row, "label": 3, "first_ml": 0.0, "second_ml": 0.0} for row in rows[:3]
    ]  # found nowhere: it says nothing
    assert agreement.summarise(rows + absent)["volume_concordance"] == pytest.approx(-1.0)


def test_concordance_by_hand():
    x = np.array([1.0, 2.0, 3.0])
    assert agreement.concordance(x, x) == pytest.approx(1.0)
    assert agreement.concordance(x, x + 1) == pytest.approx(2 * (2 / 3) / (4 / 3 + 1))
    assert agreement.concordance(x, x[::-1]) == pytest.approx(-1.0)
    assert math.isnan(agreement.concordance(np.ones(3), np.ones(3)))


def test_a_reader_is_told_of_training_cases(labelled, model, tmp_path):

    trained = shutil.copytree(model, tmp_path / "trained")
    (trained / "report.json").write_text(json.dumps({"train": ["case0", "case1"]}))
    how = dict(model=trained, shifts=("truncation",), severities=(1,), overlays=0)
    found = measure_robustness(labelled, out=tmp_path / "a", **how)
    assert "was trained on 2 of these 3 cases" in found.markdown()
    held = measure_robustness(labelled, out=tmp_path / "b", cases=["case2"], **how)
    assert held.notes == [] and {row["case"] for row in held.rows} == {"case2"}


def test_what_does_not_fit_is_said_before_any_work(labelled, model, tmp_path, capsys):
    ask = ["robustness", labelled, "--model", model, "--out", tmp_path / "out"]
    assert "no shift is called 'blur'" in refused(capsys, *ask, "--shifts", "blur")
    assert "there are 1, 2, 3, 4 and 5" in refused(capsys, *ask, "--severities", "7")
    assert "whose masks?" in refused(capsys, "robustness", labelled, "--out", tmp_path / "out")
    assert "needs a --model" in refused(
        capsys, "robustness", labelled, "--against", model, "--out", tmp_path / "out"
    )
    assert "nothing to measure" in refused(capsys, "robustness", "--model", model, "--out", tmp_path / "out")
    assert "needs a table" in refused(capsys, *ask, "--by", "kernel")
    assert "no case is called case9" in refused(capsys, *ask, "--cases", "case9")
    assert "no table" in refused(capsys, *ask, "--pairs", tmp_path / "none.csv")
    assert "rename the column" in refused(capsys, *ask, "--by", "model")
    assert "give one above 0" in refused(capsys, *ask, "--tolerance", "nan")
    (tmp_path / "cases.csv").write_text("id,model\ncase0,a\n")
    assert "rename the column" in refused(capsys, *ask, "--by", "model", "--table", tmp_path / "cases.csv")
    bare = [
        "robustness",
        "--predictions",
        tmp_path,
        "--out",
        tmp_path / "out",
        "--pairs",
        tmp_path / "none.csv",
    ]
    assert "cannot be paired" in refused(capsys, *bare)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    assert "needed: first, second" in refused(capsys, *ask, "--pairs", tmp_path / "bad.csv")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "something else" in refused(capsys, *ask)


@pytest.mark.filterwarnings("default::ctssl.lint.ScanWarning")
def test_shift_a_scan(labelled, tmp_path, capsys):
    source, out = labelled / "images" / "case0.nii.gz", tmp_path / "out.nii.gz"
    assert main(["shift", str(source), "--kernel", "3", str(out)]) == 0
    scan = ctssl.read(source)
    np.testing.assert_array_equal(ctssl.read(out).array, ctssl.shift(scan, "kernel_sharp", severity=3).array)
    assert "exists" in refused(capsys, "shift", source, out, "--dose", "2")
    assert "is a scan that is read" in refused(capsys, "shift", source, source, "--dose", "2", "--overwrite")
    assert (
        main(
            [
                "shift",
                str(source),
                str(out),
                "--kernel",
                "-2",
                "--dose",
                "4",
                "--seed",
                "7",
                "--overwrite",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["shifts"] == {"dose": 4, "kernel_smooth": 2}
    wanted = ctssl.shift(ctssl.shift(scan, "dose", severity=4, seed=7), "kernel_smooth", severity=2, seed=7)
    np.testing.assert_array_equal(ctssl.read(out).array, wanted.array)
    assert "say which shift" in refused(capsys, "shift", source, tmp_path / "x.nii.gz")
    assert "not both" in refused(
        capsys, "shift", source, tmp_path / "x.nii.gz", "--kernel", "1", "--kernel-sharp", "1"
    )
    assert "no severity 6" in refused(capsys, "shift", source, tmp_path / "x.nii.gz", "--dose", "6")
    assert "1 to 5 is sharper" in refused(capsys, "shift", source, tmp_path / "x.nii.gz", "--kernel", "0")
    assert main(["shift", str(source), str(tmp_path / "thick.nii.gz"), "--thickness", "1"]) == 0
    assert (
        "warning: case0.nii.gz: thickness-1 changes nothing on voxels of 2 x 2 x 3 mm"
        in capsys.readouterr().err
    )


def test_shift_a_folder(labelled, tmp_path, capsys):
    ask = ["shift", str(labelled / "images"), str(tmp_path / "out"), "--truncation", "2"]
    assert main(ask) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"case{i}.nii.gz" for i in range(3)]
    first, second = (tmp_path / "out" / f"case{i}.nii.gz" for i in range(2))
    second.unlink()
    before = first.stat().st_mtime_ns
    assert main(ask) == 0 and second.exists() and first.stat().st_mtime_ns == before  # it goes on
    second.unlink()
    assert "by other shifts" in refused(capsys, *ask[:-1], "3") and not second.exists()  # nothing is mixed
    assert main([*ask[:-1], "3", "--overwrite"]) == 0 and second.exists()
    assert first.stat().st_mtime_ns > before
    masks = tmp_path / "masks"
    shutil.copytree(labelled / "labels", masks)
    onto = ["shift", labelled / "images", masks, "--truncation", "3", "--overwrite"]
    assert "nothing in it proves" in refused(capsys, *onto)
    for path in masks.iterdir():  # as `ctssl segment` writes them: with the header of the shifted scan
        header = ctssl.read(tmp_path / "out" / path.name).header
        replace(ctssl.read(path), header=header).save(path, overwrite=True)
    assert "nothing in it proves" in refused(capsys, *onto)
    mixed = tmp_path / "mixed"
    shutil.copytree(labelled / "images", mixed)
    (mixed / "case0.nii.gz").write_bytes(b"no scan")
    assert main(["shift", str(mixed), str(tmp_path / "some"), "--truncation", "2"]) == 1
    assert "1 scans failed:\n  case0: " in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "some").iterdir()) == ["case1.nii.gz", "case2.nii.gz"]
    own = labelled / "images"
    assert "is a scan that is read" in refused(capsys, "shift", own, own, "--truncation", "2", "--overwrite")
    capsys.readouterr()
    assert "--every is for a folder" in refused(
        capsys, "shift", labelled / "images" / "case0.nii.gz", tmp_path / "x", "--every"
    )


def test_a_pair_is_found_by_the_fields_of_its_specs():
    wild, own = ctssl.pair("swin", "mim")
    assert (wild.corpus, own.corpus) == ("wild", "self") and wild.encoder == own.encoder == "swin"
    assert ctssl.info(wild.name) is wild and ctssl.info(own.name) is own
    with pytest.raises(
        ValueError, match=r"no pair of models for \('swin', 'dino'\); there are .*\('swin', 'mim'\)"
    ):
        ctssl.pair("swin", "dino")
