"""The paper's public data as manifests: `python -m training.data.nsclc FOLDER [--out nsclc]`.

FOLDER holds NSCLC-Radiomics (CT with RTSTRUCT, the ROI GTV-1) or NSCLC-Radiogenomics (CT with DICOM-SEG) as TCIA's tools
download them; both may lie side by side. Each case with a CT and a tumour becomes a row of `OUT/manifest.csv`: image (the
DICOM folder), label (a NIfTI mask, written to `OUT/labels`), patient, collection, kernel, the paper's kernel bin, contrast,
slice thickness. `training.pretrain --data OUT/manifest.csv` reads it. Needs pydicom (`ctssl[dicom]`).
"""

import argparse
import csv
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

import ctssl
from ctssl.dicom import read_rtstruct, read_seg

COLUMNS = (
    "image",
    "label",
    "patient",
    "collection",
    "manufacturer",
    "kernel",
    "kernel_bin",
    "contrast",
    "thickness_mm",
)
GE_BINS = {"STANDARD": "smooth", "BONE": "smooth", "BONEPLUS": "medium", "LUNG": "sharp"}


def kernel_bin(manufacturer: str, kernel: str) -> str:
    """smooth, medium or sharp, as the paper bins GE's names and Siemens' numbers; "" for what it does not name."""
    if "GE" in manufacturer.upper().split():
        return GE_BINS.get(re.sub(r"[^A-Z]", "", kernel.upper()), "")
    number = re.match(r"[BI](\d+)", kernel.strip().upper())
    if "SIEMENS" in manufacturer.upper() and number:
        return "smooth" if int(number[1]) < 40 else "medium" if int(number[1]) < 50 else "sharp"
    return ""


def found(folder: Path) -> dict[str, dict[str, list[tuple[Path, Any]]]]:
    """For every patient and modality the (folder or file, header) of its series."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    patients: dict[str, dict[str, list[tuple[Path, Any]]]] = defaultdict(lambda: defaultdict(list))
    folders = sorted({path.parent for path in folder.rglob("*") if path.is_file()})
    for series in tqdm(folders, desc="looking"):
        for file in sorted(p for p in series.iterdir() if p.is_file()):
            try:
                header = pydicom.dcmread(file, stop_before_pixels=True)
            except (InvalidDicomError, OSError, EOFError):
                continue
            modality = str(header.get("Modality", ""))
            if modality in ("CT", "RTSTRUCT", "SEG"):
                patients[str(header.PatientID)][modality].append((series if modality == "CT" else file, header))
            if modality == "CT":  # the others of the folder belong to the same series
                break
    return patients


def referenced(header: Any) -> str:
    """The SeriesInstanceUID that a structure set or segmentation was drawn on; "" when it does not say."""
    for frame in header.get("ReferencedFrameOfReferenceSequence", []):
        for study in frame.get("RTReferencedStudySequence", []):
            for series in study.get("RTReferencedSeriesSequence", []):
                return str(series.SeriesInstanceUID)
    for series in header.get("ReferencedSeriesSequence", []):
        return str(series.SeriesInstanceUID)
    return ""


def convert(patient: str, series: dict[str, list[tuple[Path, Any]]], out: Path, *, roi: str) -> dict[str, str]:
    """The row of a patient; its mask is written. Raises `ValueError` saying what is missing."""
    drawn = series["RTSTRUCT"] + series["SEG"]
    if not series["CT"] or not drawn:
        raise ValueError("no CT series" if not series["CT"] else "no RTSTRUCT or SEG")
    file, header = drawn[0]
    wanted = referenced(header)
    matching = [pair for pair in series["CT"] if str(pair[1].SeriesInstanceUID) == wanted] or series["CT"]
    if len(matching) > 1:
        raise ValueError(f"{len(matching)} CT series, and {file.name} does not say which one it was drawn on")
    image, ct = matching[0]
    scan = ctssl.read(image)
    mask = read_rtstruct(file, scan, roi=roi) if header.Modality == "RTSTRUCT" else read_seg(file, scan)
    if not mask.array.any():
        raise ValueError(f"the tumour of {file.name} is empty on its CT")
    label = mask.save(out / "labels" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', patient)}.nii.gz", overwrite=True)
    kernel, maker = str(ct.get("ConvolutionKernel", "")), str(ct.get("Manufacturer", ""))
    values = (str(image.resolve()), str(label.relative_to(out)), patient, "NSCLC-Radiomics" if header.Modality == "RTSTRUCT"
              else "NSCLC-Radiogenomics", maker, kernel, kernel_bin(maker, kernel),
              "yes" if ct.get("ContrastBolusAgent") else "no", str(ct.get("SliceThickness", "")))  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("nsclc"))
    parser.add_argument("--roi", default="GTV-1", help="the tumour's name in an RTSTRUCT (default: %(default)s)")
    args = parser.parse_args(arguments)
    if not args.folder.is_dir():
        raise SystemExit(f"no folder {args.folder}")
    (args.out / "labels").mkdir(parents=True, exist_ok=True)
    rows, left_out = [], []
    for patient, series in tqdm(sorted(found(args.folder).items()), desc="converting"):
        try:
            rows.append(convert(patient, series, args.out, roi=args.roi))
        except (ValueError, OSError) as error:
            left_out.append(f"{patient}: {error}")
    with open(args.out / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} cases in {args.out / 'manifest.csv'}; left out: {len(left_out)}", *left_out, sep="\n  ")
    if not rows:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
