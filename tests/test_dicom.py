"""DICOM folders, against the NIfTI of the same series, and broken ones made on the spot."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import ctssl
from ctssl.volume.volume import Volume

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'ctssl[dicom]'")


def write_series(
    folder: Path, *, count: int = 6, uid: str = "1.2.3", modality: str = "CT", tilt_mm: float = 0.0
) -> None:
    """A little series: rows 5, columns 4, 0.5 x 0.8 mm, slices 2.5 mm apart; value = 100 k + 10 j + i as HU."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{uid}.{k + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = Dataset()
        image.file_meta = meta
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, f"{uid}.{k + 1}"
        image.PatientID, image.PatientName, image.PatientBirthDate, image.PatientSex = "p", "p^", "", ""
        image.StudyInstanceUID, image.StudyID, image.StudyDate, image.StudyTime = "1.2", "", "", ""
        image.AccessionNumber, image.ReferringPhysicianName, image.FrameOfReferenceUID = "", "", "1.2.9"
        image.PositionReferenceIndicator = ""
        image.SeriesInstanceUID, image.Modality, image.SeriesDescription = uid, modality, f"series {uid}"
        image.Rows, image.Columns, image.PixelSpacing = 5, 4, [0.8, 0.5]
        image.ImageOrientationPatient, image.ImagePositionPatient = (
            [1, 0, 0, 0, 1, 0],
            [-10, -20 + tilt_mm * k, 30 + 2.5 * k],
        )
        image.RescaleSlope, image.RescaleIntercept = 2, -1000
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        rows, columns = np.meshgrid(np.arange(5), np.arange(4), indexing="ij")
        image.PixelData = ((100 * k + 10 * rows + columns + 1000) // 2).astype(np.int16).tobytes()
        image.save_as(folder / f"{uid}-{(k * 7) % count}.dcm", enforce_file_format=True)


def test_values_and_places_are_those_of_the_headers(tmp_path):
    write_series(tmp_path / "scan", count=5)
    scan = ctssl.read(tmp_path / "scan")
    assert scan.shape == (4, 5, 5) and scan.array.dtype == np.float32
    np.testing.assert_allclose(scan.array[2, 3, 4], 432)
    np.testing.assert_allclose(scan.affine @ [0, 0, 0, 1], [10, 20, 30, 1])  # LPS to RAS
    np.testing.assert_allclose(scan.affine @ [2, 3, 4, 1], [10 - 2 * 0.5, 20 - 3 * 0.8, 30 + 4 * 2.5, 1])


def test_a_tilted_gantry_gives_a_sheared_affine(tmp_path):
    write_series(tmp_path / "scan", tilt_mm=1.0)
    affine = ctssl.read(tmp_path / "scan").affine
    np.testing.assert_allclose(affine[:3, 2], [0, -1.0, 2.5])


def test_a_real_series_equals_its_nifti(data):
    scan, nifti = (
        ctssl.read(data / "dicom" / "STS_008"),
        ctssl.read(data / "sarcoma" / "images" / "STS_008.nii.gz"),
    )
    centre = np.array([*(np.array(nifti.shape) // 2), 1.0])
    for offset in ([0, 0, 0, 0], [20, -15, 3, 0], [-25, 10, -4, 0]):
        place = nifti.affine @ (centre + offset)
        here = np.round((np.linalg.inv(scan.affine) @ place)[:3]).astype(int)
        there = np.round(centre + offset).astype(int)[:3]
        one, two = (
            v.array[tuple(slice(c - 2, c + 3) for c in at)].mean() for v, at in ((scan, here), (nifti, there))
        )
        assert abs(one - two) < 40


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path):
    write_series(tmp_path / "scan", uid="1.2.3")
    write_series(tmp_path / "scan", uid="1.2.4", count=4)
    with pytest.raises(ValueError, match=r"2 series(.|\n)*1\.2\.3  6 images(.|\n)*1\.2\.4  4 images"):
        ctssl.read(tmp_path / "scan")
    assert ctssl.read(tmp_path / "scan", series="1.2.4").shape[2] == 4
    with pytest.raises(ValueError, match="no series 9"):
        ctssl.read(tmp_path / "scan", series="9")


def test_missing_and_doubled_slices_are_refused(tmp_path):
    write_series(tmp_path / "scan")
    files = sorted((tmp_path / "scan").iterdir())
    shutil.copy(files[1], tmp_path / "scan" / "copy.dcm")
    with pytest.raises(ValueError, match="same place"):
        ctssl.read(tmp_path / "scan")
    (tmp_path / "scan" / "copy.dcm").unlink()
    next(f for f in files if pydicom.dcmread(f).ImagePositionPatient[2] == 35).unlink()
    with pytest.raises(ValueError, match="slices are missing.*after slice 2 of 5"):
        ctssl.read(tmp_path / "scan")


def test_what_is_not_a_ct_series_is_refused(tmp_path):
    write_series(tmp_path / "mr", modality="MR")
    with pytest.raises(ValueError, match="MR, not CT"):
        ctssl.read(tmp_path / "mr")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no DICOM"):
        ctssl.read(tmp_path / "none")
    write_series(tmp_path / "one", count=1)
    with pytest.raises(ValueError, match="one image"):
        ctssl.read(tmp_path / "one")
    write_series(tmp_path / "cut")
    victim = sorted((tmp_path / "cut").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot decode"):
        ctssl.read(tmp_path / "cut")


def write_rtstruct(
    path: Path,
    rois: dict[str, list[list[tuple[float, float, float]]]],
    *,
    series: str = "1.2.3",
    patient: str = "P",
) -> None:
    """An RTSTRUCT with closed contours in LPS mm."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = "1.2.9", ExplicitVRLittleEndian
    image = Dataset()
    image.file_meta, image.Modality, image.PatientID = meta, "RTSTRUCT", patient
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.9"
    referenced, study, frame = Dataset(), Dataset(), Dataset()
    referenced.SeriesInstanceUID = series
    study.RTReferencedSeriesSequence = Sequence([referenced])
    frame.RTReferencedStudySequence = Sequence([study])
    image.ReferencedFrameOfReferenceSequence = Sequence([frame])
    names, drawn = [], []
    for number, (name, contours) in enumerate(rois.items(), 1):
        one, two = Dataset(), Dataset()
        one.ROINumber, one.ROIName, two.ReferencedROINumber = number, name, number
        parts = []
        for points in contours:
            part = Dataset()
            part.ContourGeometricType, part.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            part.ContourData = [float(v) for point in points for v in point]
            parts.append(part)
        two.ContourSequence = Sequence(parts)
        names.append(one)
        drawn.append(two)
    image.StructureSetROISequence, image.ROIContourSequence = Sequence(names), Sequence(drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)


def square(low: float, high: float, z: float) -> list[tuple[float, float, float]]:
    return [(low, low, z), (high, low, z), (high, high, z), (low, high, z)]


def grid_in_lps() -> ctssl.Volume:
    """A scan whose voxel (i, j, k) lies at LPS (i, j, 2 k) mm."""
    return ctssl.Volume(np.zeros((20, 20, 4), np.float32), np.diag([-1.0, -1.0, 2.0, 1.0]), "grid")


def test_contours_are_filled_even_odd_with_holes(tmp_path):
    from ctssl.volume.dicom_masks import read_rtstruct

    ring = [square(2.5, 12.5, 2.0), square(5.5, 8.5, 2.0), square(14.5, 16.5, 2.0), square(0.5, 3.5, 6.0)]
    write_rtstruct(tmp_path / "rs.dcm", {"tumour": ring})
    mask = read_rtstruct(tmp_path / "rs.dcm", grid_in_lps()).array
    assert mask.sum((0, 1)).tolist() == [0, 10 * 10 - 3 * 3 + 2 * 2, 0, 3 * 3]
    assert mask[3, 3, 1] and not mask[6, 7, 1] and mask[15, 16, 1] and not mask[13, 13, 1] and mask[12, 12, 1]


def test_a_polygon_fills_the_voxels_whose_centres_it_holds(tmp_path):
    """Against the winding of each voxel's centre, summed up as angles."""
    from ctssl.volume.dicom_masks import _toggle

    rng = np.random.default_rng(0)
    for _ in range(10):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        polygon = 15 + rng.uniform(3, 12, (9, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
        plane = np.zeros((30, 30), bool)
        _toggle(plane, polygon)
        centres = np.stack(np.meshgrid(np.arange(30), np.arange(30), indexing="ij"), -1)[:, :, None]
        a, b = polygon - centres, np.roll(polygon, -1, 0) - centres
        turned = np.arctan2(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0], (a * b).sum(-1)).sum(-1)
        assert np.array_equal(plane, np.abs(turned) > np.pi)


def test_a_structure_is_chosen_by_name_and_foreign_contours_are_refused(tmp_path):
    from ctssl.volume.dicom_masks import read_rtstruct

    write_rtstruct(tmp_path / "rs.dcm", {"GTV-1": [square(1.5, 4.5, 0.0)], "Lung": [square(1.5, 9.5, 0.0)]})
    assert read_rtstruct(tmp_path / "rs.dcm", grid_in_lps(), roi="GTV-1").array.sum() == 9
    with pytest.raises(ValueError, match="2 structures.*'GTV-1', 'Lung'.*--roi"):
        read_rtstruct(tmp_path / "rs.dcm", grid_in_lps())
    with pytest.raises(ValueError, match="no structure 'PTV'"):
        read_rtstruct(tmp_path / "rs.dcm", grid_in_lps(), roi="PTV")
    write_rtstruct(tmp_path / "off.dcm", {"GTV-1": [square(1.5, 4.5, 1.0)]})
    with pytest.raises(ValueError, match="another series"):
        read_rtstruct(tmp_path / "off.dcm", grid_in_lps())


def test_a_real_rtstruct_agrees_with_the_published_mask(data):
    from ctssl.metrics import dsc
    from ctssl.volume.dicom_masks import read_rtstruct
    from ctssl.volume.grids import resample

    scan = ctssl.read(data / "dicom" / "STS_008" / "ct")
    mask = read_rtstruct(data / "dicom" / "STS_008" / "rtstruct" / "RS.dcm", scan)
    label = ctssl.read(data / "sarcoma" / "labels" / "STS_008.nii.gz")
    there = resample(label.array, label.affine, scan.shape, scan.affine, fill=-1.0)
    both = there >= 0  # where the cropped label covers the series
    assert dsc(mask.array[both] > 0, there[both] > 0.5) >= 0.95


def test_the_papers_data_become_a_manifest(tmp_path):
    """Synthetic series of the structure that TCIA gives out: one patient with RTSTRUCT, one without, one broken."""
    import csv

    from training.data import manifest, nsclc

    root = tmp_path / "tcia"
    for i in (1, 2):
        write_series(root / f"LUNG1-00{i}" / "study" / "ct", uid=f"1.2.{i}")
        for file in (root / f"LUNG1-00{i}" / "study" / "ct").iterdir():
            image = pydicom.dcmread(file)
            image.PatientID, image.Manufacturer, image.ConvolutionKernel = f"LUNG1-00{i}", "SIEMENS", "B30f"
            image.ContrastBolusAgent, image.SliceThickness = "Ultravist", 3
            image.save_as(file, enforce_file_format=True)
    corner = [
        (-10 + 0.4, -20 + 0.7, 35.0),
        (-10 + 1.1, -20 + 0.7, 35.0),
        (-10 + 1.1, -20 + 2.5, 35.0),
        (-10 + 0.4, -20 + 2.5, 35.0),
    ]
    write_rtstruct(
        root / "LUNG1-001" / "study" / "rt" / "1.dcm",
        {"GTV-1": [corner], "Lung": [corner]},
        series="1.2.1",
        patient="LUNG1-001",
    )
    nsclc.main([str(root), "--out", str(tmp_path / "out")])
    with open(tmp_path / "out" / "manifest.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["patient"], row["kernel_bin"], row["contrast"], row["thickness_mm"]) == (
        "LUNG1-001",
        "smooth",
        "yes",
        "3.0",
    )
    mask = ctssl.read(tmp_path / "out" / row["label"]).array
    assert mask.sum() == 2 * 3 and mask[1:3, 1:4, 2].all()
    assert manifest.find_scans(tmp_path / "out" / "manifest.csv")[0].patient == "LUNG1-001"


def test_kernels_fall_into_the_papers_bins():
    from training.data.nsclc import kernel_bin

    cases = {
        ("GE MEDICAL SYSTEMS", "STANDARD"): "smooth",
        ("GE MEDICAL SYSTEMS", "BONEPLUS"): "medium",
        ("GE MEDICAL SYSTEMS", "LUNG"): "sharp",
        ("SIEMENS", "B30f"): "smooth",
        ("SIEMENS", "B40f"): "medium",
        ("SIEMENS", "B45f"): "medium",
        ("SIEMENS", "B60s"): "sharp",
        ("SIEMENS", "I70f"): "sharp",
        ("Philips", "C"): "",
    }
    assert {case: kernel_bin(*case) for case in cases} == cases


def write_segmentation(path: Path) -> None:
    """Frames in any order, a slice left out, half the pixel size; value 1 in LPS x 4..8, y 2..12 mm of slices 1 and 3."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian

    def item(**fields):
        dataset = Dataset()
        for key, value in fields.items():
            setattr(dataset, key, value)
        return dataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.8"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    frame = np.zeros((40, 40), np.uint8)  # rows are y, columns x, 0.5 mm
    frame[4:24, 8:16] = 1
    groups = [
        item(
            PlanePositionSequence=Sequence([item(ImagePositionPatient=[-0.25, -0.25, z])]),
            SegmentIdentificationSequence=Sequence([item(ReferencedSegmentNumber=1)]),
        )
        for z in (6.0, 2.0)
    ]
    shared = item(
        PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
        PixelMeasuresSequence=Sequence([item(PixelSpacing=[0.5, 0.5])]),
    )
    image = item(
        Modality="SEG",
        SOPClassUID=meta.MediaStorageSOPClassUID,
        SOPInstanceUID="1.2.8",
        Rows=40,
        Columns=40,
        NumberOfFrames=2,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        PixelData=np.stack([frame, frame]).tobytes(),
        SegmentSequence=Sequence([item(SegmentNumber=1, SegmentLabel="tumour")]),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(groups),
    )
    image.file_meta = meta
    image.save_as(path, enforce_file_format=True)


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


# --- DICOM-SEG ---


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
        (Volume(array[1:], scan.affine), "not on one grid"),
        (Volume(array * 0, scan.affine), "nothing was"),
    ):
        with pytest.raises(ValueError, match=words):
            write_seg(wrong, names, tmp_path / "scan", tmp_path / "n.dcm")
    with pytest.raises(FileExistsError):
        write_seg(Volume(array, scan.affine), names, tmp_path / "scan", path)


@pytest.mark.filterwarnings("ignore::ctssl.lint.ScanWarning")
def test_a_series_beside_its_structure_set_becomes_one_segmentation(tmp_path, capsys):
    """A folder whose series lies in a folder of its own is one scan, when one DICOM file is asked for."""
    import torch

    from ctssl.cli.main import main

    write_series(tmp_path / "patient" / "ct")
    (tmp_path / "patient" / "notes").mkdir()
    torch.manual_seed(0)
    encoder = ctssl.Swin(12, depths=(1, 1), heads=(2, 4), window=4, patch=2, merge_last=False)
    model = ctssl.segmenter(encoder, head="linear")
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
