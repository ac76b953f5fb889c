"""`ctssl shift` and `ctssl robustness`: what they print, write and refuse."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import ctssl
from ctssl.cli.main import main
from tests.support.command import refused


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


def test_what_does_not_fit_is_said_before_any_work(labelled, tiny_segmenter, tmp_path, capsys):
    ask = ["robustness", labelled, "--model", tiny_segmenter, "--out", tmp_path / "out"]
    assert "unknown shift 'blur'" in refused(capsys, *ask, "--shifts", "blur")
    assert "use 1, 2, 3, 4 or 5" in refused(capsys, *ask, "--severities", "7")
    assert "whose masks?" in refused(capsys, "robustness", labelled, "--out", tmp_path / "out")
    assert "needs a --model" in refused(
        capsys, "robustness", labelled, "--against", tiny_segmenter, "--out", tmp_path / "out"
    )
    assert "nothing to measure" in refused(
        capsys, "robustness", "--model", tiny_segmenter, "--out", tmp_path / "out"
    )
    assert "needs a table" in refused(capsys, *ask, "--by", "kernel")
    assert "no case is called case9" in refused(capsys, *ask, "--cases", "case9")
    assert "no table" in refused(capsys, *ask, "--pairs", tmp_path / "none.csv")
    assert "rename the column" in refused(capsys, *ask, "--by", "model")
    assert "must be > 0" in refused(capsys, *ask, "--tolerance", "nan")
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


@pytest.mark.filterwarnings("default::ctssl.scan_checks.ScanWarning")
def test_shift_a_scan(labelled, tmp_path, capsys):
    source, out = labelled / "images" / "case0.nii.gz", tmp_path / "out.nii.gz"
    assert main(["shift", str(source), "--kernel", "3", str(out)]) == 0
    scan = ctssl.read(source)
    np.testing.assert_array_equal(ctssl.read(out).array, ctssl.shift(scan, "kernel_sharp", severity=3).array)
    assert "exists" in refused(capsys, "shift", source, out, "--dose", "2")
    assert "is an input scan" in refused(capsys, "shift", source, source, "--dose", "2", "--overwrite")
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
    assert "unknown severity 6 of dose" in refused(
        capsys, "shift", source, tmp_path / "x.nii.gz", "--dose", "6"
    )
    assert "1 to 5 is sharper" in refused(capsys, "shift", source, tmp_path / "x.nii.gz", "--kernel", "0")
    assert main(["shift", str(source), str(tmp_path / "thick.nii.gz"), "--thickness", "1"]) == 0
    assert (
        "warning: case0.nii.gz: thickness-1 has no effect on voxels of 2 x 2 x 3 mm"
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
    assert "has no valid stamp" in refused(capsys, *onto)
    for path in masks.iterdir():  # as `ctssl segment` writes them: with the header of the shifted scan
        header = ctssl.read(tmp_path / "out" / path.name).header
        replace(ctssl.read(path), header=header).save(path, overwrite=True)
    assert "has no valid stamp" in refused(capsys, *onto)
    mixed = tmp_path / "mixed"
    shutil.copytree(labelled / "images", mixed)
    (mixed / "case0.nii.gz").write_bytes(b"no scan")
    assert main(["shift", str(mixed), str(tmp_path / "some"), "--truncation", "2"]) == 1
    assert "1 scans failed:\n  case0: " in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "some").iterdir()) == ["case1.nii.gz", "case2.nii.gz"]
    own = labelled / "images"
    assert "is an input scan" in refused(capsys, "shift", own, own, "--truncation", "2", "--overwrite")
    capsys.readouterr()
    assert "--every is for a folder" in refused(
        capsys, "shift", labelled / "images" / "case0.nii.gz", tmp_path / "x", "--every"
    )
