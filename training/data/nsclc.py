"""Convert the paper's public data to a manifest: `python -m training.data.nsclc FOLDER [--out nsclc]`.

FOLDER holds NSCLC-Radiomics (CT with RTSTRUCT, the ROI GTV-1) or NSCLC-Radiogenomics (CT with DICOM-SEG) as
TCIA's tools download them, or both. Each case with a CT and a tumour becomes a row of `OUT/manifest.csv`:
image (the DICOM folder), label (a NIfTI mask, written to `OUT/labels`), patient, collection, kernel, the
paper's kernel bin, contrast, slice thickness. `training.pretrain --data OUT/manifest.csv` reads it. Needs
pydicom (`ctssl[dicom]`).
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

import ctssl
from ctssl.files.atomic import write_whole
from ctssl.files.text import csv_text
from ctssl.volume.dicom import Found, find_series, match_annotation
from ctssl.volume.dicom_masks import read_annotation

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
    """Return smooth, medium or sharp, as the paper bins GE's names and Siemens' numbers; "" for other
    kernels.

    >>> kernel_bin("SIEMENS", "B40f"), kernel_bin("GE MEDICAL SYSTEMS", "LUNG")
    ('medium', 'sharp')
    """
    if "GE" in manufacturer.upper().split():
        return GE_BINS.get(re.sub(r"[^A-Z]", "", kernel.upper()), "")
    number = re.match(r"[BI](\d+)", kernel.strip().upper())
    if "SIEMENS" in manufacturer.upper() and number:
        return "smooth" if int(number[1]) < 40 else "medium" if int(number[1]) < 50 else "sharp"
    return ""


def convert(patient: str, series: Found, out: Path, *, roi: str, overwrite: bool = False) -> dict[str, str]:
    """Return the manifest row of a patient and write its mask, unless it exists.

    Raises `ValueError` if CT or tumour is missing.
    """
    (image, ct), (file, header) = match_annotation(series, patient)
    scan = ctssl.read(image)
    mask = read_annotation(file, scan, roi=roi if header.Modality == "RTSTRUCT" else None)
    if not mask.array.any():
        raise ValueError(f"the tumour mask of {file.name} is empty on its CT")
    label = out / "labels" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', patient)}.nii.gz"
    if overwrite or not label.exists():  # an existing one may have been corrected
        mask.save(label, overwrite=True)
    kernel, maker = str(ct.get("ConvolutionKernel", "")), str(ct.get("Manufacturer", ""))
    values = (
        str(image.resolve()),
        str(label.relative_to(out)),
        patient,
        "NSCLC-Radiomics" if header.Modality == "RTSTRUCT" else "NSCLC-Radiogenomics",
        maker,
        kernel,
        kernel_bin(maker, kernel),
        "yes" if ct.get("ContrastBolusAgent") else "no",
        str(ct.get("SliceThickness", "")),
    )
    return dict(zip(COLUMNS, values, strict=True))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the downloaded collections")
    parser.add_argument(
        "--out", type=Path, default=Path("nsclc"), help="output folder (default: %(default)s)"
    )
    parser.add_argument(
        "--roi", default="GTV-1", help="name of the tumour in an RTSTRUCT (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing manifest and masks")
    args = parser.parse_args(arguments)
    if not args.folder.is_dir():
        raise SystemExit(f"no folder {args.folder}; give the downloaded collections")
    if (args.out / "manifest.csv").exists() and not args.overwrite:
        raise SystemExit(
            f"{args.out / 'manifest.csv'} exists; choose another --out for this collection, or pass "
            "--overwrite"
        )
    (args.out / "labels").mkdir(parents=True, exist_ok=True)
    rows, left_out = [], []
    patients: dict[str, Found] = defaultdict(lambda: {"CT": [], "RTSTRUCT": [], "SEG": []})
    for modality, series in find_series(args.folder, progress=True).items():
        for path, header in series:
            patients[str(header.PatientID)][modality].append((path, header))
    for patient, series in tqdm(sorted(patients.items()), desc="converting"):
        try:
            rows.append(convert(patient, series, args.out, roi=args.roi, overwrite=args.overwrite))
        except (ValueError, OSError) as error:
            left_out.append(f"{patient}: {error}")
    if not rows:
        raise SystemExit("\n  ".join([f"no case in {args.folder}; left out: {len(left_out)}", *left_out]))
    write_whole(args.out / "manifest.csv", csv_text(rows))
    print(
        f"{len(rows)} cases in {args.out / 'manifest.csv'}; left out: {len(left_out)}", *left_out, sep="\n  "
    )


if __name__ == "__main__":
    main()
