"""DICOM segmentations, read and written."""

import copy
from dataclasses import replace

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
    for name, kind in (("seg", "SEG"), ("rs", "RTSTRUCT")):
        with pytest.raises(ValueError, match=f"is a {kind}, not a scan"):
            ctssl.read(tmp_path / f"{name}.dcm")


def read_edited(path, edit, **choice):
    from ctssl.volume.dicom_masks import read_seg

    write_segmentation(path, edit)
    return read_seg(path, grid_in_lps(), **choice).array


def test_segments_of_one_name_become_their_union(tmp_path):
    def edit(image):
        second = copy.deepcopy(image.SegmentSequence[0])
        second.SegmentNumber = 2
        image.SegmentSequence.append(second)
        group = image.PerFrameFunctionalGroupsSequence[1]
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2

    for choice in ({}, {"segment": "tumour"}):
        mask = read_edited(tmp_path / "seg.dcm", edit, **choice)
        assert mask.sum((0, 1)).tolist() == [0, 40, 0, 40]


@pytest.mark.parametrize(("value", "voxels"), [(1, 40), (100, 40), (101, 80), (200, 80)])
def test_fractions_count_above_half_of_their_maximum(tmp_path, value, voxels):
    """The first frame holds full voxels, the second `value` of 200."""

    def edit(image):
        image.SegmentationType, image.MaximumFractionalValue = "FRACTIONAL", 200
        frame = np.frombuffer(image.PixelData, np.uint8)[:1600]
        image.PixelData = np.concatenate([frame * 200, frame * value]).astype(np.uint8).tobytes()

    assert read_edited(tmp_path / "seg.dcm", edit).sum() == voxels


def test_a_segmentation_of_small_fractions_or_of_another_kind_is_refused(tmp_path):
    def edit(image):
        image.SegmentationType, image.MaximumFractionalValue = "FRACTIONAL", 200

    with pytest.raises(ValueError, match="no voxel of grid is inside"):
        read_edited(tmp_path / "seg.dcm", edit)
    with pytest.raises(ValueError, match="a LABELMAP segmentation; ctssl reads BINARY and FRACTIONAL"):
        read_edited(tmp_path / "seg.dcm", lambda image: setattr(image, "SegmentationType", "LABELMAP"))


def test_a_segment_that_no_frame_shows_is_empty(tmp_path):
    def edit(image):
        for group in image.PerFrameFunctionalGroupsSequence:
            group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2

    assert not read_edited(tmp_path / "seg.dcm", edit).any()


def move(*places):
    """An edit of `write_segmentation` that puts the frames at these places."""

    def edit(image):
        for group, place in zip(image.PerFrameFunctionalGroupsSequence, places, strict=True):
            group.PlanePositionSequence[0].ImagePositionPatient = list(place)

    return edit


def test_frames_outside_the_scan_are_counted_or_refused(tmp_path):
    with pytest.warns(UserWarning, match="1 of 2 frames of 'tumour' .*outside grid"):
        mask = read_edited(tmp_path / "seg.dcm", move((-0.25, -0.25, 8.0), (-0.25, -0.25, 2.0)))
    assert mask.sum((0, 1)).tolist() == [0, 40, 0, 0]
    with pytest.warns(UserWarning, match="2 of 2 frames of 'tumour' .*outside grid"):
        assert read_edited(tmp_path / "seg.dcm", move((-6.25, -0.25, 6.0), (-6.25, -0.25, 2.0))).sum() == 40
    with pytest.raises(ValueError, match="no voxel of grid .*2 of 2 frames"):
        read_edited(tmp_path / "seg.dcm", move((-0.25, -0.25, 80.0), (-90.25, -0.25, 2.0)))
    with pytest.raises(ValueError, match="does not lie in one slice of grid .*slices 2.50 to 2.50"):
        read_edited(tmp_path / "seg.dcm", move((-0.25, -0.25, 5.0), (-0.25, -0.25, 2.0)))


@pytest.mark.parametrize(
    ("cosines", "words"),
    [
        ([2, 0, 0, 0, 1, 0], "invalid ImageOrientationPatient"),
        ([1, 0, 0, 0.5, 0.8660254, 0], "invalid ImageOrientationPatient"),
        ([1, 0, 0, 0, 0.9848078, 0.1736482], "a frame does not lie in one slice of grid"),
    ],
    ids=["not of unit length", "not perpendicular", "tilted by 10 degrees"],
)
def test_frames_on_axes_that_do_not_fit_are_refused(tmp_path, cosines, words):
    def edit(image):
        groups = image.SharedFunctionalGroupsSequence[0]
        groups.PlaneOrientationSequence[0].ImageOrientationPatient = cosines

    with pytest.raises(ValueError, match=words):
        read_edited(tmp_path / "seg.dcm", edit)


def test_each_frame_keeps_its_own_axes_and_a_turn_within_the_slice(tmp_path):
    """The second frame is turned by a quarter: x and y change places; then both by 30 degrees."""

    def edit(image):
        frame = image.PerFrameFunctionalGroupsSequence[1]
        frame.PlaneOrientationSequence = copy.deepcopy(
            image.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
        )
        frame.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]

    mask = read_edited(tmp_path / "seg.dcm", edit)
    assert mask[2:12, 4:8, 1].sum() == mask[:, :, 1].sum() == 40
    assert mask[4:8, 2:12, 3].sum() == mask[:, :, 3].sum() == 40

    def turn(image):
        groups = image.SharedFunctionalGroupsSequence[0]
        c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
        groups.PlaneOrientationSequence[0].ImageOrientationPatient = [c, s, 0, -s, c, 0]
        move((5.0, 0.0, 6.1), (5.0, 0.0, 1.9))(image)

    mask = read_edited(tmp_path / "seg.dcm", turn)
    assert (abs(mask.sum((0, 1)) - [0, 40, 0, 40]) <= 3).all()


def test_a_segmentation_of_another_frame_of_reference_or_series_is_told(tmp_path):
    from ctssl.volume.dicom_masks import read_seg

    def edit(image):
        image.FrameOfReferenceUID = "1.2.9"
        image.ReferencedSeriesSequence = [pydicom.Dataset()]
        image.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"

    write_segmentation(tmp_path / "seg.dcm", edit)
    scan = replace(grid_in_lps(), frame_uid="1.2.9", series_uid="1.2.3")
    assert read_seg(tmp_path / "seg.dcm", scan).array.sum() == 80
    with pytest.raises(ValueError, match="frame of reference"):
        read_seg(tmp_path / "seg.dcm", replace(scan, frame_uid="1.2.8"))
    with pytest.warns(UserWarning, match="refers to series"):
        assert read_seg(tmp_path / "seg.dcm", replace(scan, series_uid="1.2.4")).array.sum() == 80


@pytest.mark.parametrize("slices", [[3], [1, 2, 4]], ids=["one frame", "several frames"])
def test_the_segmentation_of_a_one_label_model_comes_back(tmp_path, slices):
    """Highdicom moves what all frames share into the shared functional groups."""
    from ctssl.volume.dicom_masks import read_seg
    from ctssl.volume.dicom_seg import write_seg

    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'ctssl[dicom]'")
    write_series(tmp_path / "scan", tilt_mm=1.0)
    scan = ctssl.read(tmp_path / "scan")
    array = np.zeros(scan.shape, np.uint8)
    array[1:3, 2:4, slices] = 1
    path = write_seg(
        Volume(array, scan.affine), {1: "tumour"}, tmp_path / "scan", tmp_path / "m.dcm", sha256="ab" * 32
    )
    np.testing.assert_array_equal(read_seg(path, scan).array, array)


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
        (Volume(array[1:], scan.affine), "the series in scan has shape .* on its own grid"),
        (Volume(array, scan.affine @ np.diag([1, 1, 2, 1])), "the series in scan and the mask lie up to"),
        (Volume(array * 0, scan.affine), "is empty, and DICOM has no empty segmentation"),
    ):
        with pytest.raises(ValueError, match=words):
            write_seg(wrong, names, tmp_path / "scan", tmp_path / "n.dcm")
    with pytest.raises(FileExistsError):
        write_seg(Volume(array, scan.affine), names, tmp_path / "scan", path)


@pytest.mark.filterwarnings("ignore::ctssl.scan_checks.ScanWarning")
def test_a_series_beside_its_structure_set_becomes_one_segmentation(tiny, tmp_path, capsys):
    """A folder whose series lies in a folder of its own is one scan, when one DICOM file is asked for."""
    import torch

    from ctssl.cli.main import main

    write_series(tmp_path / "patient" / "ct", edit=lambda k, image: setattr(image, "RescaleIntercept", -1500))
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
