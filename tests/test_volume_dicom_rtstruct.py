"""RT Structure Sets: written, and read again."""

import shutil
import warnings

import numpy as np
import pytest

import ctssl
from ctssl.cli.main import main
from ctssl.metrics import dsc
from ctssl.pictures import colour_of
from ctssl.volume.dicom import find_series, match_annotation
from ctssl.volume.dicom_masks import read_rtstruct
from ctssl.volume.dicom_rtstruct import COLOURS, check_series, write_rtstruct
from ctssl.volume.volume import Volume
from tests.support.dicom import write_series

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'ctssl[dicom]'")

STRAIGHT, OBLIQUE, REVERSED = (
    [1, 0, 0, 0, 1, 0],
    [0.8528686, 0.4924039, -0.1736482, -0.4470297, 0.8512950, 0.2745193],
    [-1, 0, 0, 0, 1, 0],
)


def make_series(folder, *, cosines=STRAIGHT, columns=28, rows=32, count=12, tilt_mm=0.0, edit=None):
    """A series on any axes: 0.5 x 0.8 mm, slices 2.5 mm apart along the normal."""
    across, down = np.array(cosines[:3], float), np.array(cosines[3:], float)

    def place(k, image):
        image.Rows, image.Columns, image.ImageOrientationPatient = rows, columns, list(cosines)
        position = [-10, -20, 30] + 2.5 * k * np.cross(across, down) + tilt_mm * k * down
        image.ImagePositionPatient = [f"{value:.6f}" for value in position]
        image.PixelData = (
            np.random.default_rng(k).integers(400, 600, (rows, columns)).astype(np.int16).tobytes()
        )
        if edit is not None:
            edit(k, image)

    write_series(folder, count=count, edit=place)
    return ctssl.read(folder)


def shell(shape, *, centre=0.5, outer=0.4, inner=0.2):
    """An ellipsoid with a hole, in shares of the grid."""
    places = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n for n in shape], indexing="ij"), -1)
    far = np.linalg.norm(places - centre, axis=-1)
    return (far < outer) & (far >= inner)


@pytest.mark.parametrize(
    ("cosines", "tilt_mm"),
    [(STRAIGHT, 0.0), (OBLIQUE, 0.0), (REVERSED, 0.0), (STRAIGHT, 0.9)],
    ids=["axial", "oblique", "feet first", "gantry tilt"],
)
def test_an_ellipsoid_with_a_hole_comes_back(tmp_path, cosines, tilt_mm):
    scan = make_series(tmp_path / "ct", cosines=cosines, tilt_mm=tilt_mm)
    mask = shell(scan.shape)
    assert mask.any() and not mask[14, 16, 6]
    path = write_rtstruct(
        Volume(mask.astype(np.uint8), scan.affine), {1: "tumour"}, tmp_path / "ct", tmp_path / "rs.dcm"
    )
    back = read_rtstruct(path, scan)
    assert dsc(back.array, mask) >= 0.97  # what any reader should reach
    np.testing.assert_array_equal(back.array, mask)


def test_corners_by_hand(tmp_path):
    """Voxel (2, 3) of slice 1 lies at x = -10 + 2 * 0.5, y = -20 + 3 * 0.8, z = 32.5 mm."""
    scan = make_series(tmp_path / "ct")
    mask = np.zeros(scan.shape, np.uint8)
    mask[2, 3, 1] = 1
    path = write_rtstruct(Volume(mask, scan.affine), {1: "a"}, tmp_path / "ct", tmp_path / "rs.dcm")
    (contour,) = pydicom.dcmread(path).ROIContourSequence[0].ContourSequence
    corners = np.array(contour.ContourData, float).reshape(-1, 3)
    assert sorted(map(tuple, corners.tolist())) == [
        (-9.25, -17.6, 32.5),
        (-9.0, -18.0, 32.5),
        (-9.0, -17.2, 32.5),
        (-8.75, -17.6, 32.5),
    ]


@pytest.fixture
def written(tmp_path):
    """An oblique scan, labels 1 and 3 that touch, and their structure set; label 2 was not found."""
    scan = make_series(tmp_path / "ct", cosines=OBLIQUE)
    mask = shell(scan.shape).astype(np.uint8)
    mask[shell(scan.shape, outer=0.2, inner=0.1)] = 3
    labels = {1: "tumour", 2: "node", 3: "necrosis\\core"}
    path = write_rtstruct(
        Volume(mask, scan.affine),
        labels,
        tmp_path / "ct",
        tmp_path / "rs.dcm",
        model="my-model",
        sha256="ab" * 32,
    )
    return scan, mask, path


def test_several_labels_come_back_and_one_that_was_not_found_has_no_roi(written):
    scan, mask, path = written
    for number, name in ((1, "tumour"), (3, "necrosis/core")):
        np.testing.assert_array_equal(read_rtstruct(path, scan, roi=name).array, mask == number)
    with pytest.raises(ValueError, match="no structure 'node'"):
        read_rtstruct(path, scan, roi="node")


def test_the_file_has_what_the_standard_requires(written):
    """Elements of type 1 and 2 of the modules that an RT Structure Set must have (PS3.3, A.19)."""
    scan, _, path = written
    found = pydicom.dcmread(path)
    slices = [pydicom.dcmread(file) for file in (path.parent / "ct").iterdir()]
    for key in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
        *("ReferringPhysicianName", "AccessionNumber", "SeriesNumber", "OperatorsName", "Manufacturer"),
        *("PositionReferenceIndicator", "StructureSetDate", "StructureSetTime"),
    ):
        assert key in found, key
    assert found.Modality == "RTSTRUCT" and found.StructureSetLabel and found.file_meta.TransferSyntaxUID
    assert found.SOPClassUID == "1.2.840.10008.5.1.4.1.1.481.3" == found.file_meta.MediaStorageSOPClassUID
    assert found.SOPInstanceUID == found.file_meta.MediaStorageSOPInstanceUID
    assert found.StudyInstanceUID == "1.2" and found.SeriesInstanceUID not in ("", "1.2.3")
    assert found.PatientID == "p" and found.ManufacturerModelName == "my-model"
    (frame,) = found.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    (series,) = study.RTReferencedSeriesSequence
    assert frame.FrameOfReferenceUID == found.FrameOfReferenceUID == scan.frame_uid
    assert study.ReferencedSOPInstanceUID == "1.2" and study.ReferencedSOPClassUID
    assert series.SeriesInstanceUID == scan.series_uid
    named = [(one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID) for one in series.ContourImageSequence]
    assert sorted(named) == sorted((one.SOPClassUID, one.SOPInstanceUID) for one in slices)
    rois, seen = found.StructureSetROISequence, found.RTROIObservationsSequence
    assert [
        (r.ROINumber, r.ROIName, r.ROIGenerationAlgorithm, r.ReferencedFrameOfReferenceUID) for r in rois
    ] == [
        (1, "tumour", "AUTOMATIC", scan.frame_uid),
        (2, "necrosis/core", "AUTOMATIC", scan.frame_uid),
    ]
    assert [(o.ObservationNumber, o.ReferencedROINumber) for o in seen] == [(1, 1), (2, 2)]
    assert all("RTROIInterpretedType" in one and "ROIInterpreter" in one for one in seen)
    assert [c.ReferencedROINumber for c in found.ROIContourSequence] == [1, 2]


def test_contours_lie_in_the_plane_of_the_image_that_they_name(written):
    _, mask, path = written
    images = {i.SOPInstanceUID: i for i in map(pydicom.dcmread, (path.parent / "ct").iterdir())}
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    contours = pydicom.dcmread(path).ROIContourSequence[0].ContourSequence
    assert len(contours) == (mask == 1).any((0, 1)).sum() and [int(c.ContourNumber) for c in contours] == [
        *range(1, len(contours) + 1)
    ]
    for contour in contours:
        (image,) = contour.ContourImageSequence
        corners = np.array(contour.ContourData, float).reshape(-1, 3)
        start = np.array(images[image.ReferencedSOPInstanceUID].ImagePositionPatient, float)
        assert np.abs((corners - start) @ normal).max() < 1e-3
        assert (
            contour.ContourGeometricType == "CLOSED_PLANAR" and len(corners) == contour.NumberOfContourPoints
        )


def test_colours_are_those_of_the_overlays(written):
    found = pydicom.dcmread(written[2]).ROIContourSequence
    assert [tuple(map(int, one.ROIDisplayColor)) for one in found] == [COLOURS[0], COLOURS[2]]
    for number, colour in enumerate(COLOURS, 1):
        assert np.abs(np.array(colour_of(number)) * 255 - colour).max() <= 1


def test_a_contour_of_more_than_64_kib_is_written(tmp_path):
    """In an explicit transfer syntax it would become an element of unknown type."""
    scan = make_series(tmp_path / "ct", columns=1200, rows=9, count=2)
    mask = np.zeros(scan.shape, np.uint8)
    mask[::2], mask[:, 4] = 1, 1
    path = write_rtstruct(Volume(mask, scan.affine), {1: "comb"}, tmp_path / "ct", tmp_path / "rs.dcm")
    longest = max(
        len(str(c["ContourData"].value)) for c in pydicom.dcmread(path).ROIContourSequence[0].ContourSequence
    )
    assert longest > 65536
    np.testing.assert_array_equal(read_rtstruct(path, scan).array, mask)


@pytest.mark.filterwarnings("ignore:The value length:UserWarning")  # of the series that is written here
def test_names_in_other_letters_and_values_that_are_too_long_are_kept(tmp_path):
    def edit(k, image):
        image.SpecificCharacterSet, image.PatientName = "ISO_IR 100", "Müller^Jürgen"
        image.StudyID = pydicom.DataElement("StudyID", "SH", "0123456789abcdefgh", validation_mode=0).value

    scan = make_series(tmp_path / "ct", edit=edit)
    mask = Volume(shell(scan.shape).astype(np.uint8), scan.affine)
    path = write_rtstruct(mask, {1: "Läsion"}, tmp_path / "ct", tmp_path / "rs.dcm")
    found = pydicom.dcmread(path)
    assert str(found.PatientName) == "Müller^Jürgen" and found.StudyID == "0123456789abcdefgh"
    assert found.StructureSetROISequence[0].ROIName == "Läsion"


def test_what_cannot_be_written_is_told(tmp_path):
    scan = make_series(tmp_path / "ct")
    array, target = shell(scan.shape).astype(np.uint8), tmp_path / "rs.dcm"
    moved = scan.affine.copy()
    moved[:3, 3] += 5.0
    for wrong, words in (
        (Volume(array[1:], scan.affine), "has shape .* on its own grid"),
        (Volume(array, moved), "lie up to .* apart"),
        (Volume(array * 0, scan.affine), "is empty.*write OUT.nii.gz instead"),
        (Volume(array * 2, scan.affine), "is empty.*write OUT.nii.gz instead"),
    ):
        with pytest.raises(ValueError, match=words):
            write_rtstruct(wrong, {1: "a"}, tmp_path / "ct", target)
    assert not target.exists()
    target.write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_rtstruct(Volume(array, scan.affine), {1: "a"}, tmp_path / "ct", target)
    assert target.read_text() == "mine"
    write_rtstruct(Volume(array, scan.affine), {1: "a"}, tmp_path / "ct", target, overwrite=True)
    assert pydicom.dcmread(target).Modality == "RTSTRUCT"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".part")] == []


def test_a_series_without_a_frame_of_reference_is_refused(tmp_path):
    def edit(k, image):
        del image.FrameOfReferenceUID

    make_series(tmp_path / "ct", edit=edit)
    with pytest.raises(ValueError, match="lack FrameOfReferenceUID.*write OUT.nii.gz instead"):
        check_series(tmp_path / "ct")


def test_one_of_several_series_is_chosen_and_the_result_is_a_label_of_it(tmp_path):
    write_series(tmp_path / "p" / "other", uid="1.2.4", count=3)
    make_series(tmp_path / "p" / "ct")
    scan = ctssl.read(tmp_path / "p", series="1.2.3")
    array = shell(scan.shape).astype(np.uint8)
    write_rtstruct(
        Volume(array, scan.affine), {1: "a"}, tmp_path / "p", tmp_path / "p" / "rs.dcm", series="1.2.3"
    )
    (ct, _), (file, _) = match_annotation(find_series(tmp_path / "p"), "p")
    assert (ct.name, file.name) == ("ct", "rs.dcm")
    np.testing.assert_array_equal(read_rtstruct(file, ctssl.read(ct)).array, array)


def save_model(tiny, folder, bias):
    """A segmenter with these logits of background and tumour everywhere."""
    import torch

    model = ctssl.segmenter(tiny, head="linear")
    with torch.no_grad():
        list(model.head.parameters())[-1].copy_(torch.tensor(bias))
    model.save_pretrained(folder)


@pytest.fixture
def command(tiny, tmp_path):
    """`ctssl segment` of a series, by a model to which everything is tumour."""
    make_series(tmp_path / "ct", edit=lambda k, image: setattr(image, "RescaleIntercept", -1500))
    save_model(tiny, tmp_path / "model", [-9.0, 9.0])
    return ["segment", str(tmp_path / "ct"), str(tmp_path / "m.dcm"), "--model", str(tmp_path / "model")]


@pytest.mark.filterwarnings("ignore::ctssl.scan_checks.ScanWarning")
def test_the_command_writes_a_structure_set_and_replaces_nothing(command, tmp_path, capsys):
    target = tmp_path / "m.dcm"
    assert main([*command, "--format", "rtstruct"]) == 0
    assert f"{target}: RTSTRUCT of tumour" in capsys.readouterr().out
    written = target.read_bytes()
    mask = read_rtstruct(target, ctssl.read(tmp_path / "ct"))
    assert mask.array.all() and pydicom.dcmread(target).StructureSetROISequence[0].ROIName == "tumour"
    assert main([*command, "--format", "rtstruct"]) == 2 and "add --overwrite" in capsys.readouterr().err
    assert target.read_bytes() == written
    assert main([*command, "--format", "rtstruct", "--overwrite", "--json"]) == 0
    assert target.read_bytes() != written and not (tmp_path / "m.dcm.ctssl.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"ct", "model", "m.dcm"}


@pytest.mark.filterwarnings("ignore::ctssl.scan_checks.ScanWarning")
@pytest.mark.parametrize("format", ["seg", "rtstruct"])
def test_an_empty_mask_is_told_and_leaves_an_earlier_file(command, tiny, tmp_path, capsys, format):
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'ctssl[dicom]'")
    (tmp_path / "m.dcm").write_text("mine")
    shutil.rmtree(tmp_path / "model")
    save_model(tiny, tmp_path / "model", [9.0, -9.0])
    assert main([*command, "--overwrite", "--format", format]) == 2
    assert "is empty" in capsys.readouterr().err and (tmp_path / "m.dcm").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"ct", "model", "m.dcm"}
    assert main(command) == 2  # and not taken for what a killed run left


def test_what_the_command_cannot_do_is_told_before_the_model_is_read(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ctssl.load_segmenter", lambda *_, **__: pytest.fail("the model was read"))
    source = command[1]
    for args, words in (
        ([source, str(tmp_path / "m.nii.gz"), "--format", "rtstruct"], "name it OUT.dcm"),
        ([source, str(tmp_path / "masks"), "--format", "rtstruct"], "name it OUT.dcm"),
        ([source, str(tmp_path / "m.dcm"), "--format", "rtstruct", "--probabilities"], "are NIfTI files"),
    ):
        assert main(["segment", *args, "--model", "m"]) == 2
        assert words in capsys.readouterr().err
    for file in (tmp_path / "ct").iterdir():
        image = pydicom.dcmread(file)
        del image.FrameOfReferenceUID
        image.save_as(file)
    assert main([*command, "--format", "rtstruct"]) == 2
    assert "lack FrameOfReferenceUID" in capsys.readouterr().err


def test_a_real_series_with_a_hole_in_its_tumour(data, tmp_path):
    source = data / "dicom" / "STS_008" / "ct"
    scan = ctssl.read(source)
    tumour = read_rtstruct(data / "dicom" / "STS_008" / "rtstruct" / "RS.dcm", scan).array.astype(bool)
    centre = np.argwhere(tumour).mean(0)
    places = np.stack(np.meshgrid(*map(np.arange, scan.shape), indexing="ij"), -1)
    hole = (((places - centre) / [6, 6, 3]) ** 2).sum(-1) < 1
    mask = np.where(tumour & ~hole, 1, np.where(shell(scan.shape) & ~tumour, 2, 0)).astype(np.uint8)
    assert (tumour & hole).sum() > 200
    path = write_rtstruct(Volume(mask, scan.affine), {1: "tumour", 2: "shell"}, source, tmp_path / "rs.dcm")
    for number, name in ((1, "tumour"), (2, "shell")):
        assert dsc(read_rtstruct(path, scan, roi=name).array, mask == number) >= 0.999


@pytest.mark.parametrize("step", [1, 2, 3])
def test_contours_that_skip_slices_are_said(tmp_path, step):
    from tests.support.dicom import square
    from tests.support.dicom import write_rtstruct as write_contours

    scan = make_series(tmp_path / "ct")
    drawn = [square(-9.0, -4.0, 30.0 + 2.5 * k) for k in range(1, 11, step)]
    drawn = [[(x, y - 10, z) for x, y, z in one] for one in drawn]
    write_contours(tmp_path / "rs.dcm", {"a": drawn})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        mask = read_rtstruct(tmp_path / "rs.dcm", scan)
    assert np.flatnonzero(mask.array.any((0, 1))).tolist() == list(range(1, 11, step))
    told = [str(one.message) for one in said if "skip slices" in str(one.message)]
    assert len(told) == (step > 1) and all(f"lie {step} slices apart" in one for one in told)
