"""Write masks as DICOM-SEG, for viewers and archives. Needs highdicom: `pip install 'ctssl[dicom]'`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import ctssl
from ctssl.files.atomic import write_whole
from ctssl.volume.dicom import read_slices
from ctssl.volume.dicom_checks import check_on_series
from ctssl.volume.volume import Volume


def write_seg(
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
    """Write a mask as one DICOM-SEG file that refers to the images of a DICOM series, one segment per label.

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
        ValueError: the mask is on another grid, or empty (DICOM has no empty segmentation).
        FileExistsError: `target` exists and `overwrite` is False.
    """
    _check_highdicom()
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; choose another name, or pass --overwrite")
    slices, line = read_slices(source, series=series)
    check_on_series(mask, slices, line, source)
    if not mask.array.any():
        raise ValueError(
            f"the mask of {source.name} is empty, and DICOM has no empty segmentation; "
            "write OUT.nii.gz instead"
        )
    try:
        dataset = _segmentation(mask, labels, slices, model, sha256)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # what a SEG must repeat is not there
        raise ValueError(
            f"{source}: cannot write a DICOM-SEG for this series ({error}); write OUT.nii.gz instead"
        ) from error
    return write_whole(target, dataset.save_as)


def _check_highdicom() -> None:
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise ImportError("writing DICOM-SEG needs highdicom: pip install 'ctssl[dicom]'") from error


def _segmentation(mask: Volume, labels: dict[int, str], slices: list[Any], model: str, sha256: str) -> Any:
    """Build the DICOM-SEG of a mask on the grid of `slices`."""
    import highdicom

    frames = np.ascontiguousarray(mask.array.transpose(2, 1, 0))  # (X, Y, Z) -> (slices, rows, columns)
    planes = np.stack([frames == number for number in sorted(labels)], -1)
    thick = mask.spacing_mm[2]
    for image in slices:  # copies in memory; highdicom requires the attribute
        image.SliceThickness = image.get("SliceThickness") or thick
    return highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=planes,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(labels, model),
        series_instance_uid=highdicom.UID(),
        series_number=900,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="ctssl",
        manufacturer_model_name=model or "ctssl",
        software_versions=ctssl.__version__,
        device_serial_number=sha256[:16] or "0",
        series_description="ctssl segmentation",
        pixel_measures=highdicom.PixelMeasuresSequence(slices[0].PixelSpacing, thick, thick),
    )


def _descriptions(labels: dict[int, str], model: str) -> list[Any]:
    """Describe one segment per label, in the order of their numbers."""
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        "ctssl",
        family=codes.DCM.ArtificialIntelligence,
        version=ctssl.__version__,
        parameters={"model": model},
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=i,
            segment_label=labels[number],
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_identification=algorithm,
        )
        for i, number in enumerate(sorted(labels), 1)
    ]
