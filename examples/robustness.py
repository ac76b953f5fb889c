"""How robust is a model, or your own tool, to CT acquisition shifts? `python examples/robustness.py OUT [DATA MODEL]`.

Without DATA (labelled scans) and MODEL (a segmenter) it uses two phantoms and thresholding as the tool. From the shell:

    ctssl shift DATA/images SCANS --every
    # let your tool segment SCANS into MASKS (nnU-Net expects scans as CASE_0000.nii.gz; masks are CASE.nii.gz)
    ctssl robustness DATA --predictions MASKS --model MODEL --out REPORT
    ctssl compare MODEL MODEL --data DATA/images --shift thickness:5 --out cka.png
"""

import sys
from pathlib import Path

import numpy as np

import ctssl
from ctssl.datasets.layouts import find_cases
from ctssl.phantom import phantom
from ctssl.similarity import compare
from ctssl.volume.volume import Volume

SHIFTS, SEVERITIES = ("dose", "thickness"), (3, 5)


def your_tool(scan: Volume) -> Volume:
    """Replace this by nnU-Net, TotalSegmentator or your own tool: return a mask on the scan's own grid."""
    x, y, z = (
        np.arange(n) * s + o for n, s, o in zip(scan.shape, scan.spacing_mm, scan.affine[:3, 3], strict=True)
    )
    near = ((x - 70) ** 2)[:, None, None] + ((y - 10) ** 2)[:, None] + (z - 10) ** 2 < 24**2
    return Volume((near & (scan.array > 0)).astype(np.uint8), scan.affine)


def main(out: str, data: str | None = None, model: str | None = None) -> None:
    folder = Path(out)
    if data is None:
        for kind in ("images", "labels"):
            (folder / "data" / kind).mkdir(parents=True, exist_ok=True)
        for seed in range(2):
            for volume, kind in zip(phantom(4.0, seed=seed), ("images", "labels"), strict=True):
                volume.save(folder / "data" / kind / f"case{seed}.nii.gz", overwrite=True)
    cases = Path(data or folder / "data")

    # 1. shift the scans, as `ctssl shift IMAGES SCANS --every` does; save your tool's masks under the same names
    for case in find_cases(cases).cases:
        scan = ctssl.read(case.image)
        shifted = {f"{name}-{s}": ctssl.shift(scan, name, severity=s) for name in SHIFTS for s in SEVERITIES}
        for place, one in {"clean": scan, **shifted}.items():
            (folder / "masks" / place).mkdir(parents=True, exist_ok=True)
            your_tool(one).save(folder / "masks" / place / f"{case.name}.nii.gz", overwrite=True)

    # 2. report: tables, curves, overlays; with a MODEL, your tool is compared with it, case by case
    report = ctssl.measure_robustness(
        cases,
        predictions=folder / "masks",
        model=model,
        out=folder / "report",
        shifts=SHIFTS,
        severities=SEVERITIES,
    )
    for row in report.overview:
        print(
            f"{row['model']}, {row['shift']}: DSC {row['clean_dsc']:.2f} clean, {row['worst_dsc']:.2f} at its worst"
        )
    print(f"the report is in {folder / 'report'}")

    # 3. which blocks of a model represent thick slices differently? (use 256 crops for a stable result)
    seen_by = ctssl.load_segmenter(model) if model else ctssl.load(ctssl.pair("swin", "mim")[0].name)
    scans = [ctssl.read(case.image) for case in find_cases(cases).cases[:4]]
    thick = [ctssl.shift(scan, "thickness", severity=5) for scan in scans]
    alike = compare(seen_by, seen_by, scans, other_scans=thick, crops=16, batch=8, size=16)
    print("CKA clean against thick, block by block: " + " ".join(f"{v:.2f}" for v in np.diag(alike.matrix)))
    alike.picture(folder / "cka.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
