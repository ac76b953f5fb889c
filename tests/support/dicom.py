"""DICOM series and structure sets, made on the spot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ctssl


def write_series(
    folder: Path,
    *,
    count: int = 6,
    uid: str = "1.2.3",
    modality: str = "CT",
    tilt_mm: float = 0.0,
    edit: Callable[[int, Any], None] = lambda k, image: None,
) -> None:
    """A little series: rows 5, columns 4, 0.5 x 0.8 mm, slices 2.5 mm apart; value = 100 k + 10 j + i as HU.

    `edit(k, image)` changes the k-th image before it is written.
    """
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
        edit(k, image)
        image.save_as(folder / f"{uid}-{(k * 7) % count}.dcm", enforce_file_format=True)


def write_rtstruct(
    path: Path,
    rois: dict[str, list[list[tuple[float, float, float]]]],
    *,
    series: str = "1.2.3",
    patient: str = "P",
    edit: Callable[[Any], None] = lambda image: None,
) -> None:
    """An RTSTRUCT with closed contours in LPS mm; `edit(image)` changes it before it is written."""
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
    edit(image)
    image.save_as(path, enforce_file_format=True)


def square(low: float, high: float, z: float) -> list[tuple[float, float, float]]:
    return [(low, low, z), (high, low, z), (high, high, z), (low, high, z)]


def grid_in_lps() -> ctssl.Volume:
    """A scan whose voxel (i, j, k) lies at LPS (i, j, 2 k) mm."""
    return ctssl.Volume(np.zeros((20, 20, 4), np.float32), np.diag([-1.0, -1.0, 2.0, 1.0]), "grid")


def write_segmentation(path: Path, edit: Callable[[Any], None] = lambda image: None) -> None:
    """Frames in any order, a slice left out, half the pixel size; value 1 in LPS x 4..8, y 2..12 mm of slices 1 and 3.

    `edit(image)` changes it before it is written.
    """
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
    edit(image)
    image.save_as(path, enforce_file_format=True)
