"""Files from strangers: damaged, absurd, or made to do harm. Each is refused in words, or read right; none takes the machine."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import ctssl
from ctssl import hub
from ctssl.cli.main import main
from ctssl.datasets.checks import problems
from ctssl.datasets.layouts import find_cases
from ctssl.files.names import REPOSITORY, file_name
from ctssl.inference.folder import segment_all, write_mask
from ctssl.phantom import phantom
from ctssl.volume import nifti
from ctssl.volume.volume import Volume
from tests.mutation import zeros_packed

LIMITED = """
import resource, sys, torch, nibabel, ctssl, ctssl.nifti
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 29),) * 2)
for source in sys.argv[2:]:
    try:
        getattr(ctssl, sys.argv[1])(source)
    except ValueError as error:
        print("refused:", error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
"""A process that may take 512 MB beside the libraries; anything but `ValueError` ends it with a traceback."""


def in_a_small_process(function: str, *sources: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, function, *map(str, sources)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


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


@pytest.fixture
def scan(tmp_path) -> Path:
    return phantom(16.0)[0].save(tmp_path / "scan.nii")


def changed(scan: Path, to: Path, *, pack: bool = False, **fields) -> Path:
    """A copy with other fields in its header, `dim_3=9` for the third number of `dim`."""
    data = scan.read_bytes()
    header = np.frombuffer(data[:348], nibabel.Nifti1Header.template_dtype).copy()
    for name, value in fields.items():
        field, _, place = name.rpartition("_") if name[-1].isdigit() else (name, "", "")
        header[field][(0, int(place)) if place else 0] = value
    content = header.tobytes() + data[348:]
    to.write_bytes(gzip.compress(content) if pack else content)
    return to


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"dim_1": 32767, "dim_2": 32767, "dim_3": 32767},
            "32767 x 32767 x 32767 voxels, more than the 1073741824",
        ),
        ({"dim_1": 2000}, "more than a file of its size can hold"),
        ({"dim_1": -5}, "its shape is"),
        ({"dim_3": 0}, "its shape is"),
        ({"dim_0": 9}, "its shape is"),
        ({"vox_offset": np.nan}, "its voxels would begin at byte nan"),
        ({"vox_offset": 1e30}, "its voxels would begin at byte 1e"),
        ({"datatype": 4096}, "data code 4096"),
        ({"datatype": 1}, "damaged or not NIfTI"),
        ({"srow_x_1": np.nan}, "no usable affine"),
        ({"srow_x_1": np.inf}, "no usable affine"),
        ({"srow_x_3": 1e30}, "puts the scan nowhere"),
        ({"srow_x_0": 0.0, "srow_x_1": 0.0, "srow_x_2": 0.0}, "singular affine"),
        ({"sform_code": 77}, "its geometry is of the kinds"),
        ({"scl_slope": 1.0, "scl_inter": np.nan}, "damaged or not NIfTI"),
        ({"scl_slope": 1e38}, "NaN or infinite voxels"),
        ({"magic": b"ni1"}, "damaged or not NIfTI"),
        ({"sizeof_hdr": 540}, "damaged or not NIfTI"),
    ],
)
@pytest.mark.parametrize("pack", [False, True], ids=["nii", "nii.gz"])
def test_an_absurd_header_is_refused_before_its_voxels_are_read(scan, tmp_path, fields, words, pack):
    if fields == {"dim_1": 2000} and pack:
        fields = {"dim_1": 32000}
    bad = changed(scan, tmp_path / ("bad.nii.gz" if pack else "bad.nii"), pack=pack, **fields)
    with pytest.raises(ValueError, match=words) as refused:
        ctssl.read(bad)
    assert "bad.nii" in str(refused.value)


def test_a_negative_pixdim_changes_nothing_where_the_affine_is_given(scan, tmp_path):
    found, known = ctssl.read(changed(scan, tmp_path / "n.nii", pixdim_1=-16.0)), ctssl.read(scan)
    np.testing.assert_array_equal(found.array, known.array)
    np.testing.assert_array_equal(found.affine, known.affine)


def test_either_byte_order_and_both_nifti_versions_are_read_alike(scan, tmp_path):
    known = ctssl.read(scan)
    image = nibabel.load(scan)
    nibabel.Nifti2Image(known.array, known.affine).to_filename(tmp_path / "two.nii.gz")
    header = image.header.as_byteswapped(">")
    nibabel.Nifti1Image(known.array.astype(">f4"), known.affine, header).to_filename(tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    for name in ("two.nii.gz", "big.nii"):
        found = ctssl.read(tmp_path / name)
        np.testing.assert_array_equal(found.array, known.array)
        np.testing.assert_allclose(found.affine, known.affine)


def test_a_flipped_bit_of_a_packed_file_is_found_by_its_checksum(scan, tmp_path):
    """Of a gzip file that is stored, not deflated, a flipped bit would be another voxel and nothing else."""
    data = bytearray(gzip.compress(scan.read_bytes(), 0))
    data[len(data) // 2] ^= 64
    (tmp_path / "flipped.nii.gz").write_bytes(data)
    with pytest.raises(ValueError, match="damaged or not NIfTI"):
        ctssl.read(tmp_path / "flipped.nii.gz")


def test_decompression_bombs_are_refused_before_they_unpack(scan, tmp_path):
    """Files of some megabytes that unpack to 8 GB, in a process that may take half a gigabyte."""
    bomb = zeros_packed(8)
    wide = changed(scan, tmp_path / "wide.nii", dim_1=1024, dim_2=1024, dim_3=2000).read_bytes()[:352]
    for name, start in {"goes-on": scan.read_bytes(), "claims": wide, "none": b""}.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(gzip.compress(start) + bomb)
    far = changed(scan, tmp_path / "far.nii", vox_offset=2e9).read_bytes()[:352]
    (tmp_path / "far.nii.gz").write_bytes(gzip.compress(far) + bomb)
    names = ("goes-on", "claims", "far", "none")
    began = time.monotonic()
    *lines, peak = in_a_small_process("read", *[tmp_path / f"{name}.nii.gz" for name in names])
    assert time.monotonic() - began < 30
    assert [line.split(":")[0] for line in lines] == ["refused"] * 4
    for words, line in zip(
        ("it goes on behind", "more than the 1073741824", "would begin at byte 2e+09", "not begin"),
        lines,
        strict=True,
    ):
        assert words in line
    assert len(bomb) < 40e6 and int(peak) < 3000


@pytest.fixture
def model(tmp_path) -> Path:
    torch.manual_seed(0)
    encoder = ctssl.Swin(12, depths=(1, 1), heads=(2, 4), window=4, patch=2, merge_last=False)
    return encoder.save_pretrained(tmp_path / "model")


def with_arguments(model: Path, name: str, **changes) -> Path:
    """A copy of a model whose config says something else."""
    folder = model.with_name(name)
    folder.mkdir()
    config = json.loads((model / hub.CONFIG).read_text())
    (folder / hub.CONFIG).write_text(json.dumps(config | {"encoder_args": config["encoder_args"] | changes}))
    (folder / hub.WEIGHTS).write_bytes((model / hub.WEIGHTS).read_bytes())
    return folder


def test_an_encoder_of_absurd_size_is_refused_before_memory_is_taken(model):
    """In a process that may take half a gigabyte, and at once: a million blocks would take minutes to build."""
    folders = [
        with_arguments(model, "a", width=10**9),
        with_arguments(model, "b", depths=[10**6, 1]),
        with_arguments(model, "c", window=10**5),
        with_arguments(model, "d", patch=10**4),
        with_arguments(model, "e", width=12 * 2000),
        with_arguments(model, "f", mlp_ratio=1e5),
        with_arguments(model, "g", depths=[1] * 60),
        with_arguments(model, "h", heads=[10**6, 10**6]),
    ]
    began = time.monotonic()
    *lines, _ = in_a_small_process("load", *folders)
    assert time.monotonic() - began < 30
    assert len(lines) == len(folders) and all(line.startswith("refused: ") for line in lines), lines


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ["x"]}, "name is .*a text is needed"),
        ({"encoder": {"swin": 1}}, "encoder is .*a text is needed"),
        ({"encoder_args": [12]}, "encoder_args is .*an object is needed"),
        ({"kind": "shell"}, "this ctssl knows encoder and segmenter"),
        ({"preprocess": {"spacing_mm": float("nan"), "window_hu": [-500, 500]}}, "prepare no CT"),
        ({"preprocess": {"spacing_mm": 2, "window_hu": [500, 500]}}, "prepare no CT"),
        ({"preprocess": {"spacing_mm": 0, "window_hu": [-500, 500]}}, "prepare no CT"),
    ],
)
def test_a_config_of_wrong_types_is_refused_in_words(model, changes, words):
    config = json.loads((model / hub.CONFIG).read_text())
    (model / hub.CONFIG).write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=words):
        ctssl.load(model)


def test_weights_that_make_nan_are_refused_when_they_are_used(model, ball):
    encoder = ctssl.load(model)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(1e38)  # finite, so the file is in order
    encoder.save_pretrained(model, overwrite=True)
    with pytest.raises(ValueError, match="NaN or infinite features"):
        ctssl.load(model).embed(ball[0])
    broken = ctssl.segmenter(ctssl.load(model), head="linear")
    with pytest.raises(ValueError, match="NaN or infinite values"):
        broken.segment(ball[0])


TRAVERSAL = ["../../x", "/etc/x", "..", ".", "", "a/b", "a\\b", "a\0b", "x" * 300, ".hidden", "a\nb"]


@pytest.mark.parametrize("name", TRAVERSAL, ids=range(len(TRAVERSAL)))
def test_no_name_of_a_case_leads_out_of_the_folder(name, labelled, model, tmp_path):
    with pytest.raises(ValueError, match="cannot be the name of a case"):
        file_name(name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="cannot be the name of a case"):
        segment_all(
            ctssl.segmenter(ctssl.load(model), head="linear"),
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


def test_labels_cannot_name_files_elsewhere_nor_share_one(model, ball, tmp_path):
    scan = ball[0]
    net = ctssl.segmenter(ctssl.load(model), head="linear", labels={1: "../../etc/x"})
    write_mask(net, scan, tmp_path / "m.nii.gz", with_probabilities=True)
    assert {p.name for p in tmp_path.iterdir()} == {
        "model",
        "m.nii.gz",
        "m.ctssl.json",
        "m_.._.._etc_x.nii.gz",
    }
    net = ctssl.segmenter(ctssl.load(model), head="linear", classes=3, labels={1: "a/b", 2: "a_b"})
    with pytest.raises(ValueError, match="would share files"):
        write_mask(net, scan, tmp_path / "n.nii.gz", with_probabilities=True)


@pytest.mark.parametrize(
    "name", ["../x", "me/..", "me/.x", "a/b/c", "me", "me/x y", "me/x\n", "-a/b", "/b", "a/"]
)
def test_only_owner_and_name_are_a_repository(name, model):
    assert not REPOSITORY.fullmatch(name) and REPOSITORY.fullmatch("some-body/ct.model_1")
    with pytest.raises(ValueError, match="owner/name"):
        ctssl.load(model).push_to_hub(name)
    with pytest.raises((FileNotFoundError, ValueError)):
        ctssl.load(name, offline=True)


def test_a_model_cannot_be_called_out_of_the_folder_of_models(model, tmp_path, monkeypatch):
    (tmp_path / "models" / "inner").mkdir(parents=True)
    monkeypatch.setenv("CTSSL_MODELS", str(tmp_path / "models" / "inner"))
    monkeypatch.chdir(tmp_path / "models" / "inner")
    for name in ("../../model/..", "..", "...", ""):
        with pytest.raises((FileNotFoundError, ValueError)):
            ctssl.load(name, offline=True)


def test_odd_folder_names_of_dicom_patients_are_refused_or_harmless(tmp_path):
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'ctssl[dicom]'")
    from tests.test_dicom import square, write_rtstruct, write_series

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
        (b'id,image,label\n"' + b"x" * 200_000 + b'",b,c\n', "no CSV"),
        (b"id,image\na,b\n", "needed: image, label"),
        (b"", "needed: image, label"),
        (b"id,image,label\na,b\n", "image or label is missing"),
    ],
)
def test_a_table_that_is_none_is_refused_in_words(tmp_path, capsys, content, words):
    (tmp_path / "cases.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        find_cases(tmp_path / "cases.csv")
    assert main(["check", str(tmp_path / "cases.csv")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_thousand_rows_are_listed_quickly(labelled):
    rows = [f"c{i},images/case{i % 3}.nii.gz,labels/case{i % 3}.nii.gz,p{i}" for i in range(20_000)]
    (labelled / "cases.csv").write_text("id,image,label,patient\n" + "\n".join(rows) + "\n")
    began = time.monotonic()
    assert len(find_cases(labelled / "cases.csv").cases) == 20_000
    rows[777] = "c1,images/case9.nii.gz,labels/case0.nii.gz,p"
    (labelled / "cases.csv").write_text("id,image,label,patient\n" + "\n".join(rows) + "\n")
    with pytest.raises(FileNotFoundError, match="1 files that are not there"):
        find_cases(labelled / "cases.csv")
    assert time.monotonic() - began < 5


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


def test_a_scan_too_large_for_the_ceiling_can_be_allowed_on_purpose(scan, monkeypatch):
    voxels = ctssl.read(scan).array.size
    monkeypatch.setattr(nifti, "VOXELS", voxels - 1)
    with pytest.raises(ValueError, match=f"more than the {voxels - 1}"):
        ctssl.read(scan)
    monkeypatch.setattr(nifti, "VOXELS", voxels)
    assert isinstance(ctssl.read(scan), Volume)
