"""Masks as DICOM-SEG, for viewers and archives. Needs highdicom: `pip install 'ctssl[dicom]'`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import ctssl
from ctssl.files.atomic import write_whole
from ctssl.volume.dicom import ordered_slices
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
    """Write a mask on the grid of the DICOM series `source` as one SEG file that refers to its images, a
    segment a label.

    `model`, `sha256`: what made the mask. Raises `ValueError` for a mask on another grid or an empty one
    (DICOM has no segmentation of nothing), `FileExistsError` where the file is there.
    """
    try:
        import highdicom
        from pydicom.sr.codedict import codes
    except ImportError as error:
        raise ImportError("writing DICOM-SEG needs highdicom: pip install 'ctssl[dicom]'") from error
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; choose another name, or overwrite it on purpose")
    slices, _ = ordered_slices(source, series=series)
    wanted = (int(slices[0].Columns), int(slices[0].Rows), len(slices))
    if mask.shape != wanted:
        raise ValueError(f"the mask has shape {mask.shape}, the series {wanted}: they are not on one grid")
    if not mask.array.any():
        raise ValueError(
            f"nothing was found in {source.name}, and DICOM has no empty segmentation; write OUT.nii.gz instead"
        )
    frames = np.ascontiguousarray(mask.array.transpose(2, 1, 0))  # (X, Y, Z) -> (slices, rows, columns)
    numbers = sorted(labels)
    planes = np.stack([frames == number for number in numbers], -1)
    how = highdicom.AlgorithmIdentificationSequence(
        "ctssl",
        family=codes.DCM.ArtificialIntelligence,
        version=ctssl.__version__,
        parameters={"model": model},
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=i,
            segment_label=labels[number],
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_identification=how,
        )
        for i, number in enumerate(numbers, 1)
    ]
    thick = mask.spacing_mm[2]
    for image in slices:  # copies in memory; highdicom insists on it
        image.SliceThickness = image.get("SliceThickness") or thick
    try:
        found = highdicom.seg.Segmentation(
            source_images=slices,
            pixel_array=planes,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
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
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # of a series that lacks what SEG must repeat
        raise ValueError(
            f"{source}: no DICOM-SEG can refer to this series ({error}); write OUT.nii.gz instead"
        ) from error
    return write_whole(target, found.save_as)
