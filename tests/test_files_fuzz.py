"""Files from strangers: damaged, absurd, or made to do harm. Each is refused in words, or read right; none takes the machine."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ctssl
from ctssl.cli.main import main
from ctssl.datasets.checks import problems
from ctssl.datasets.layouts import find_cases
from ctssl.files.names import check_case_name
from ctssl.inference.folder import segment_folder, target_of, write_mask


@pytest.mark.slow
def test_hundreds_of_damaged_files_are_refused_in_words_or_read_right():
    """A sample of `python -m tests.benchmarks.fuzz`, in a process with a memory limit."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.fuzz", "--count", "80", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failures"] == []
    assert len(found["counts"]) == 10
    for kind, counts in found["counts"].items():
        assert counts["refused"] >= 16 and sum(counts.values()) == 80, kind


TRAVERSAL = ["../../x", "/etc/x", "..", ".", "", "a/b", "a\\b", "a\0b", "x" * 300, ".hidden", "a\nb"]


@pytest.mark.parametrize("name", TRAVERSAL, ids=range(len(TRAVERSAL)))
def test_no_name_of_a_case_leads_out_of_the_folder(name, labelled, tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="cannot be the name of a case"):
        check_case_name(name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="cannot be the name of a case"):
        segment_folder(
            ctssl.segmenter(ctssl.load(tiny_folder), head="linear"),
            {name: labelled / "images"},
            tmp_path / "o" / "u" / "t",
        )
    assert sorted(tmp_path.rglob("*")) == before
    if name and "\0" not in name:
        table = labelled / "cases.csv"
        table.write_text(f'id,image,label\n"{name}",images/case0.nii.gz,labels/case0.nii.gz\n')
        with pytest.raises(ValueError, match=r"cases.csv, line [23]: .* cannot be the name of a case"):
            find_cases(table)


def test_inputs_may_lie_anywhere_and_results_are_named_by_the_last_part(labelled, tmp_path):
    (labelled / "deep").mkdir()
    table = labelled / "deep" / "cases.csv"
    table.write_text(f"image,label\n{labelled}/images/case0.nii.gz,../labels/case0.nii.gz\n")
    (case,) = find_cases(table).cases
    assert case.name == "case0" and problems(find_cases(table)) == []


def test_labels_cannot_name_files_elsewhere_nor_share_one(tiny_folder, ball, tmp_path):
    scan = ball[0]
    net = ctssl.segmenter(ctssl.load(tiny_folder), head="linear", labels={1: "../../etc/x"})
    write_mask(net, scan, target_of(net, tmp_path / "m.nii.gz", with_maps=True))
    assert {p.name for p in tmp_path.iterdir()} == {
        tiny_folder.name,
        "m.nii.gz",
        "m.ctssl.json",
        "m_.._.._etc_x.nii.gz",
    }
    net = ctssl.segmenter(ctssl.load(tiny_folder), head="linear", classes=3, labels={1: "a/b", 2: "a_b"})
    with pytest.raises(ValueError, match="would share files"):
        target_of(net, tmp_path / "n.nii.gz", with_maps=True)


def test_odd_folder_names_of_dicom_patients_are_refused_or_harmless(tmp_path):
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'ctssl[dicom]'")
    from tests.support.dicom import square, write_rtstruct, write_series

    for name in ("p\x1b[31m", ".hidden"):
        write_series(tmp_path / name / "ct")
        write_rtstruct(tmp_path / name / "rs.dcm", {"a": [square(-9, -8, 30.0)]})
    with pytest.raises(ValueError, match="cannot be printed"):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"id,image,label\na,b\0,c\n", "NUL bytes"),
        ("id,image,label\ncafé,b,c\n".encode("latin-1"), "not UTF-8"),
        ("id,image,label\na,b,c\n".encode("utf-16"), "NUL bytes"),
        (b"id,image,image,label\na,b,c,d\n", "column 'image' more than once"),
        (b"id,image,label\na,b,c,d\n", "more cells than the 3 columns"),
        (b'id,image,label\n"' + b"x" * 200_000 + b'",b,c\n', "invalid CSV"),
        (b"id,image\na,b\n", "needed: image, label"),
        (b"", "needed: image, label"),
        (b"id,image,label\na,b\n", "line 2: label missing"),
    ],
)
def test_a_table_that_is_none_is_refused_in_words(tmp_path, capsys, content, words):
    (tmp_path / "cases.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        find_cases(tmp_path / "cases.csv")
    assert main(["check", str(tmp_path / "cases.csv")]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_thousand_rows_are_listed_quickly(labelled):
    rows = [f"c{i},images/case{i % 3}.nii.gz,labels/case{i % 3}.nii.gz,p{i}" for i in range(20_000)]
    (labelled / "cases.csv").write_text("id,image,label,patient\n" + "\n".join(rows) + "\n")
    began = time.monotonic()
    with open(labelled / "cases.csv", newline="") as file:
        assert sum(
            (labelled / row[key]).is_file() for row in csv.DictReader(file) for key in ("image", "label")
        )
    plain = time.monotonic() - began
    began = time.monotonic()
    assert len(find_cases(labelled / "cases.csv").cases) == 20_000
    rows[777] = "c1,images/case9.nii.gz,labels/case0.nii.gz,p"
    (labelled / "cases.csv").write_text("id,image,label,patient\n" + "\n".join(rows) + "\n")
    with pytest.raises(FileNotFoundError, match="1 files that are not there"):
        find_cases(labelled / "cases.csv")
    assert time.monotonic() - began < 20 * plain + 2


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"tumour": 10**12}, "no number"),
        ({"x": "²"}, "no number"),
        ({"300": "a"}, "no number"),
        ({"a": None}, "no number"),
    ],
)
def test_a_label_number_that_no_mask_can_hold_is_refused(labelled, labels, words):
    for kind in ("images", "labels"):
        (labelled / kind).rename(labelled / f"{kind}Tr")
    (labelled / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(ValueError, match=words):
        find_cases(labelled)
