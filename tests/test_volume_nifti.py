"""NIfTI files with absurd headers, bombs and flipped bits."""

import gzip
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

import ctssl
from ctssl.phantom import phantom
from ctssl.volume import nifti
from ctssl.volume.volume import Volume
from tests.support.limited import in_a_small_process
from tests.support.mutation import zeros_packed


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
        ({"dim_1": -5}, "invalid shape"),
        ({"dim_3": 0}, "invalid shape"),
        ({"dim_0": 9}, "invalid shape"),
        ({"vox_offset": np.nan}, "invalid vox_offset nan"),
        ({"vox_offset": 1e30}, "invalid vox_offset 1e"),
        ({"datatype": 4096}, "data code 4096"),
        ({"datatype": 1}, "damaged or not NIfTI"),
        ({"srow_x_1": np.nan}, "no usable affine"),
        ({"srow_x_1": np.inf}, "no usable affine"),
        ({"srow_x_3": 1e30}, "its origin or last row is invalid"),
        ({"srow_x_0": 0.0, "srow_x_1": 0.0, "srow_x_2": 0.0}, "singular affine"),
        ({"sform_code": 77}, r"invalid sform/qform codes \[77, \d\]; NIfTI defines 0 to 5"),
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


@pytest.mark.slow
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
        ("it continues after", "more than the 1073741824", "invalid vox_offset 2e+09", "not start"),
        lines,
        strict=True,
    ):
        assert words in line
    assert len(bomb) < 40e6 and int(peak) < 3000


def test_a_scan_too_large_for_the_ceiling_can_be_allowed_on_purpose(scan, monkeypatch):
    voxels = ctssl.read(scan).array.size
    monkeypatch.setattr(nifti, "VOXELS", voxels - 1)
    with pytest.raises(ValueError, match=f"more than the {voxels - 1}"):
        ctssl.read(scan)
    monkeypatch.setattr(nifti, "VOXELS", voxels)
    assert isinstance(ctssl.read(scan), Volume)


def test_an_axis_that_nifti_1_cannot_hold_is_written_as_nifti_2(tmp_path):
    """Also with the header that such a file was read with; a shorter part of it is NIfTI-1 again."""
    long = Volume(np.arange(2 * 3 * 40000, dtype=np.float32).reshape(2, 3, 40000), np.diag([1, 2, 3, 1.0]))
    once = ctssl.read(long.save(tmp_path / "long.nii"))
    again = ctssl.read(once.save(tmp_path / "again.nii.gz"))
    assert np.array_equal(again.array, long.array) and np.allclose(again.affine, long.affine)
    part = Volume(again.array[..., :50], again.affine, header=again.header)
    assert (part.save(tmp_path / "part.nii")).read_bytes()[:4] == (348).to_bytes(4, "little")
