"""DICOM segmentations, read and written."""

import numpy as np
import pytest

import ctssl
from ctssl.volume.volume import Volume
from tests.support.dicom import grid_in_lps, square, write_rtstruct, write_segmentation, write_series

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'ctssl[dicom]'")


def test_a_segmentation_lands_on_the_grid_of_its_scan(tmp_path):
    from ctssl.volume.dicom_masks import read_seg

    write_segmentation(tmp_path / "seg.dcm")
    mask = read_seg(tmp_path / "seg.dcm", grid_in_lps()).array
    assert (
        mask.sum((0, 1)).tolist() == [0, 40, 0, 40] and mask[4:8, 2:12, 1].all() and mask[4:8, 2:12, 3].all()
    )
    write_rtstruct(tmp_path / "rs.dcm", {"a": [square(1.5, 4.5, 0.0)]})
    with pytest.raises(ValueError, match="RTSTRUCT, not a DICOM segmentation"):
        read_seg(tmp_path / "rs.dcm", grid_in_lps())


@pytest.mark.slow
def test_a_mask_becomes_a_segmentation_of_its_series_and_comes_back(tmp_path):
    from ctssl.volume.dicom_masks import read_seg
    from ctssl.volume.dicom_seg import write_seg

    highdicom = pytest.importorskip(
        "highdicom", reason="highdicom is not installed: pip install 'ctssl[dicom]'"
    )
    write_series(tmp_path / "scan")
    scan = ctssl.read(tmp_path / "scan")
    array = np.zeros(scan.shape, np.uint8)
    array[1, 2:4, 1:5], array[3, 0, 2] = 1, 2
    names = {1: "tumour", 2: "node"}
    path = write_seg(
        Volume(array, scan.affine), names, tmp_path / "scan", tmp_path / "m.dcm", model="m", sha256="ab" * 32
    )
    for number, name in names.items():
        np.testing.assert_array_equal(read_seg(path, scan, segment=name).array, array == number)
    theirs = highdicom.seg.segread(path)
    assert theirs.number_of_segments == 2 and theirs.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    uids = [
        str(pydicom.dcmread(f).SOPInstanceUID)
        for f in sorted((tmp_path / "scan").iterdir(), key=lambda f: f.name)
    ]
    frames = theirs.get_pixels_by_source_instance(sorted(uids), assert_missing_frames_are_empty=True)
    assert frames.sum() == (array > 0).sum()
    for wrong, words in (
        (Volume(array[1:], scan.affine), "must be on the same grid"),
        (Volume(array * 0, scan.affine), "is empty, and DICOM has no empty segmentation"),
    ):
        with pytest.raises(ValueError, match=words):
            write_seg(wrong, names, tmp_path / "scan", tmp_path / "n.dcm")
    with pytest.raises(FileExistsError):
        write_seg(Volume(array, scan.affine), names, tmp_path / "scan", path)


@pytest.mark.filterwarnings("ignore::ctssl.lint.ScanWarning")
def test_a_series_beside_its_structure_set_becomes_one_segmentation(tiny, tmp_path, capsys):
    """A folder whose series lies in a folder of its own is one scan, when one DICOM file is asked for."""
    import torch

    from ctssl.cli.main import main

    write_series(tmp_path / "patient" / "ct")
    (tmp_path / "patient" / "notes").mkdir()
    model = ctssl.segmenter(tiny, head="linear")
    with torch.no_grad():
        list(model.head.parameters())[-1].copy_(torch.tensor([-9.0, 9.0]))  # everything is tumour
    model.save_pretrained(tmp_path / "model")
    assert (
        main(
            [
                "segment",
                str(tmp_path / "patient"),
                str(tmp_path / "m.dcm"),
                "--model",
                str(tmp_path / "model"),
            ]
        )
        == 0
    )
    assert "DICOM-SEG" in capsys.readouterr().out and pydicom.dcmread(tmp_path / "m.dcm").Modality == "SEG"
