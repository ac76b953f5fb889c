"""What a segmenter of lung tumours marks in whole chests: `python -m training.experiments.chests MODEL [MODEL ...] [--write]`.

Seven chests that no fine-tuning has seen, each with one tumour that is known: six of QIN LUNG CT, whose masks are the consensus
of algorithms and not a physician's, and LIDC-IDRI-0314. The six are among the 46 unlabelled scans that `*-wild-lesions` was
pretrained on, where their tumours counted as background. Too few to claim anything: they show what is marked beside a tumour.
Other lesions in them may be real and not in the masks. `--write`: the table goes into model_cards/RESULTS.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import ctssl
from ctssl.datasets.case import fit_mask
from ctssl.files.atomic import write_whole
from ctssl.files.text import markdown
from ctssl.metrics import dsc
from training.data.corpora import cases, data_folder
from training.experiments import trials

RESULTS = Path(__file__).parent / "results" / "chests.json"
Row = dict[str, Any]


def chests() -> dict[str, tuple[Path, Path]]:
    """Return scan and mask of each chest by name."""
    root = data_folder()
    images = {row["id"]: root / row["image"] for row in cases("wild2")}
    found = {
        mask.name.removesuffix(".nii.gz"): mask for mask in sorted((root / "wild2_lesions").glob("*.nii.gz"))
    }
    other, one = root / "lung_tumours", "LIDC-IDRI-0314"
    pairs = {name: (images[name], mask) for name, mask in found.items()}
    return pairs | {one: (other / "images" / f"{one}.nii.gz", other / "labels" / f"{one}.nii.gz")}


def measure(model: str) -> list[Row]:
    """Segment every chest and compare with its mask, on the grid of the scan. Volumes are in ml."""
    net, rows = ctssl.load_segmenter(model), []
    for name, (image, label) in tqdm(chests().items(), desc=model):
        scan = ctssl.read(image)
        truth = fit_mask(scan, ctssl.read(label), name).array > 0
        mask = net.segment(scan).array > 0
        parts = {"tumour": truth, "found": truth & mask, "elsewhere": mask & ~truth}
        ml = {key: round(float(part.sum()) * scan.voxel_ml, 1) for key, part in parts.items()}
        rows.append({"chest": name, "dsc": round(dsc(mask, truth), 3), **ml})
    return rows


def table(found: dict[str, Row]) -> str:
    """Return the results as Markdown, a row for each chest and model."""
    lines = []
    for model, result in found.items():
        for row in result["chests"]:
            cells = [f"{row[key]:.1f}" for key in ("tumour", "found", "elsewhere")]
            lines.append([model, row["chest"], f"{row['dsc']:.2f}", *cells])
        mean = {key: float(np.mean([row[key] for row in result["chests"]])) for key in ("dsc", "elsewhere")}
        lines.append([model, "mean", f"{mean['dsc']:.2f}", "", "", f"{mean['elsewhere']:.1f}"])
    return markdown(["model", "chest", "DSC", "tumour (ml)", "of it found", "marked elsewhere"], lines)


def sentence(model: str) -> str:
    """Return what a segmenter marks in the chests, as a sentence for its card."""
    known = trials.read(RESULTS)["models"]
    if model not in known:
        return "how much has not been measured."
    rows = known[model]["chests"]
    share = sum(row["found"] for row in rows) / sum(row["tumour"] for row in rows)
    beside = [row["elsewhere"] for row in rows]
    return (
        f"in {len(rows)} chests with one known tumour each it marks {100 * share:.0f}% of the tumours and, elsewhere, "
        f"{min(beside):.1f} to {max(beside):.1f} ml (mean {np.mean(beside):.1f} ml; `python -m training.experiments.chests`). "
        "Look at every component, or crop the scan around the lesion."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="segmenters; measured ones are kept as they are")
    parser.add_argument("--write", action="store_true", help="write the table into model_cards/RESULTS.md")
    args = parser.parse_args()
    kept: dict[str, Any] = trials.read(RESULTS)
    kept["command"] = "python -m training.experiments.chests"
    for model in args.models:
        name, sha256 = Path(model).name, ctssl.load_segmenter(model).spec.sha256
        if kept["models"].get(name, {}).get("sha256") != sha256:
            kept["models"][name] = {"sha256": sha256, "chests": measure(model)}
            write_whole(RESULTS, json.dumps(kept, indent=1) + "\n")
    if args.write:
        trials.write_table("chests", table(kept["models"]))
    print(table(kept["models"]))


if __name__ == "__main__":
    main()
