"""Write masks as DICOM RT Structure Sets, for viewers and treatment planning. Needs pydicom."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

import ctssl
from ctssl.files.atomic import write_whole
from ctssl.volume.contours import trace_outlines
from ctssl.volume.dicom import read_slice_headers
from ctssl.volume.dicom_checks import check_on_series
from ctssl.volume.dicom_file import get_numbers, get_text, import_pydicom
from ctssl.volume.dicom_slices import get_axes, get_pixel_spacing
from ctssl.volume.volume import Volume

STRUCTURE_SET, STUDY = "1.2.840.10008.5.1.4.1.1.481.3", "1.2.840.10008.3.1.2.3.1"
SHARED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator"),
)
"""What a structure set repeats of its series; what the series does not have stays empty."""
REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID")
COLOURS = (
    *((230, 38, 51), (26, 153, 242), (51, 191, 76), (242, 178, 26)),
    *((166, 76, 217), (26, 204, 204), (242, 115, 178), (153, 115, 64)),
)
"""RGB of labels 1, 2, ...: those of the overlays; they repeat after the last one."""


def write_rtstruct(
    mask: Volume,
    labels: dict[int, str],
    source: Path,
    target: Path,
    *,
    series: str | None = None,
    model: str = "",
    sha256: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a mask as one RT Structure Set that refers to the images of a DICOM series, one ROI per label.

    Every slice of a label has a closed planar contour for each connected region, in patient coordinates (LPS, mm);
    holes are joined to their outline by a channel of no width (keyhole). A label without a voxel has no ROI.
    Source: DICOM PS3.3, A.19 (RT Structure Set IOD) and C.8.8.5 to C.8.8.8.

    Args:
        mask: uint8 labels on the grid of `source`.
        labels: name of each label, `{1: "tumour"}`.
        source: folder of the DICOM series.
        target: file to write.
        series: SeriesInstanceUID, when the folder holds several.
        model: name of the model that made the mask.
        sha256: sha256 of its weights.
        overwrite: replace an existing file.

    Raises:
        ValueError: the mask is on another grid, or empty (nothing could be drawn), or the series lacks what a
            structure set refers to.
        FileExistsError: `target` exists and `overwrite` is False.
    """
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; choose another name, or pass --overwrite")
    slices, line = read_slice_headers(source, series=series)
    check_on_series(mask, slices, line, source)
    drawn = {number: name for number, name in sorted(labels.items()) if (mask.array == number).any()}
    if not drawn:
        raise ValueError(
            f"the mask of {source.name} is empty, so a structure set has nothing to draw; write OUT.nii.gz instead"
        )
    dataset = _describe_series(slices, source, model, sha256)
    _add_rois(dataset, mask, drawn, slices, model)
    return write_whole(target, lambda part: dataset.save_as(part, enforce_file_format=True))


def check_series(source: Path, *, series: str | None = None) -> None:
    """Raise `ValueError` for a series that no structure set can refer to: before the work, and not after it."""
    _describe_series(read_slice_headers(source, series=series)[0], source, "", "")


def _item(**elements: Any) -> Any:
    """Make a dataset of these elements; lists of datasets are sequences."""
    item = import_pydicom().Dataset()
    for key, value in elements.items():
        setattr(item, key, value)
    return item


def _describe_series(slices: list[Any], source: Path, model: str, sha256: str) -> Any:
    """Build a structure set without ROIs: whose it is, what made it, and the images that it refers to."""
    lacking = sorted({key for image in slices for key in REQUIRED if not get_text(image, key)})
    if lacking:
        raise ValueError(
            f"{source}: images of this series lack {', '.join(lacking)}, which a structure set refers to; export the "
            "series again, or write OUT.nii.gz instead"
        )
    try:
        with warnings.catch_warnings():  # pydicom's, of values of the series that are too long: they are kept
            warnings.simplefilter("ignore")
            return _structure_set(slices, model, sha256)
    except (TypeError, ValueError) as error:  # a value of the series that the standard does not allow
        raise ValueError(
            f"{source}: cannot write a structure set for this series ({error}); write OUT.nii.gz instead"
        ) from error


def _structure_set(slices: list[Any], model: str, sha256: str) -> Any:
    pydicom = import_pydicom()
    now = datetime.now()
    dataset = _item(
        SpecificCharacterSet="ISO_IR 192",
        SOPClassUID=STRUCTURE_SET,
        SOPInstanceUID=pydicom.uid.generate_uid(),
        InstanceNumber=1,
        **{key: get_text(slices[0], key) for key in SHARED},
        Modality="RTSTRUCT",
        SeriesInstanceUID=pydicom.uid.generate_uid(),
        SeriesNumber=901,
        SeriesDescription="ctssl segmentation",
        OperatorsName="",
        Manufacturer="ctssl",
        ManufacturerModelName=(model or "ctssl")[:64],
        SoftwareVersions=ctssl.__version__,
        DeviceSerialNumber=sha256[:16] or "0",
        StructureSetLabel="ctssl",
        StructureSetName="ctssl segmentation",
        StructureSetDate=now.strftime("%Y%m%d"),
        StructureSetTime=now.strftime("%H%M%S"),
    )
    images = _item(
        SeriesInstanceUID=get_text(slices[0], "SeriesInstanceUID"),
        ContourImageSequence=[_refer_to(image) for image in slices],
    )
    study = _item(
        ReferencedSOPClassUID=STUDY,
        ReferencedSOPInstanceUID=dataset.StudyInstanceUID,
        RTReferencedSeriesSequence=[images],
    )
    dataset.ReferencedFrameOfReferenceSequence = [
        _item(FrameOfReferenceUID=dataset.FrameOfReferenceUID, RTReferencedStudySequence=[study])
    ]
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = (
        pydicom.uid.ImplicitVRLittleEndian
    )  # explicit: 64 KiB of a contour at most
    return dataset


def _refer_to(image: Any) -> Any:
    return _item(
        ReferencedSOPClassUID=get_text(image, "SOPClassUID"),
        ReferencedSOPInstanceUID=get_text(image, "SOPInstanceUID"),
    )


def _add_rois(dataset: Any, mask: Volume, labels: dict[int, str], slices: list[Any], model: str) -> None:
    """Add an ROI with its contours for each label to a structure set."""
    rois, contours, observations = [], [], []
    for number, (label, name) in enumerate(labels.items(), 1):
        roi = _item(
            ROINumber=number,
            ReferencedFrameOfReferenceUID=dataset.FrameOfReferenceUID,
            ROIName=name.replace("\\", "/")[:64],
            ROIGenerationAlgorithm="AUTOMATIC",
            ROIGenerationDescription=f"ctssl {ctssl.__version__} {model}".strip()[:64],
        )
        drawn = _item(
            ROIDisplayColor=list(COLOURS[(label - 1) % len(COLOURS)]),
            ReferencedROINumber=number,
            ContourSequence=list(_contours(mask.array == label, slices)),
        )
        seen = _item(
            ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType="", ROIInterpreter=""
        )
        rois, contours, observations = [*rois, roi], [*contours, drawn], [*observations, seen]
    dataset.StructureSetROISequence = rois
    dataset.ROIContourSequence = contours
    dataset.RTROIObservationsSequence = observations


def _contours(mask: np.ndarray, slices: list[Any]) -> Iterator[Any]:
    """Yield the contours of a mask `(X, Y, Z)`, each at the place of its own image."""
    count = 0
    for number, image in enumerate(slices):
        file = Path(image.filename)
        row, column = get_axes(image, file)
        down, across = get_pixel_spacing(image, file)
        start = np.array(get_numbers(image, "ImagePositionPatient", 3, file))
        for polygon in trace_outlines(mask[:, :, number]):
            places = start + polygon @ np.stack([row * across, column * down])  # (n, 3) in LPS mm
            count += 1
            yield _item(
                ContourNumber=count,
                ContourImageSequence=[_refer_to(image)],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(places),
                ContourData=[f"{value:.4f}" for value in places.ravel()],
            )
