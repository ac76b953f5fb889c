"""The paper's question with our models: does pretraining make a segmenter robust to how a scan was made?

`python -m training.experiments.robustness [MODEL ...] [--seeds 0 1 2] [--runs runs]` takes the segmenters of
`training.experiments.sarcoma` (those that are not in `--runs` any more are trained again), and for each of them measures

- every shift of `ctssl.shifts` at severities 1, 3 and 5 on the 12 test cases;
- the natural strata: trained on the SOFT training cases, tested on the STANDARD test cases, and back (`--strata`). One maker, and
  both kernels are smooth in the paper's bins: a weak shift;
- CKA between the pretrained and the fine-tuned encoder, block by block.

Everything measured goes to `results/robustness.json` at once, and is not measured again. `--data CSV` takes other labelled
scans (`image,label,split`, such as the manifests of `training.data.nsclc`) instead of the sarcoma data, and keeps what it
measures beside the CSV. Then `python -m training.experiments.study [--data CSV]` writes what follows from it.
"""

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import ctssl
from ctssl.datasets import find_cases
from ctssl.similarity import compare
from ctssl.writing import write_whole
from training.data.corpora import cases, data_folder, split
from training.experiments import sarcoma, trials

RESULTS = Path(__file__).parent / "results" / "robustness.json"
COMMAND = "python -m training.experiments.robustness"
SEVERITIES = (1, 3, 5)
CROPS = 256  # for CKA
KERNELS = ("SOFT", "STANDARD")


def results_of(data: Path | None) -> Path:
    """Where what is measured on some data is kept: beside the table, or with our own results."""
    return RESULTS if data is None else data.with_suffix(".robustness.json")


def results(path: Path) -> dict[str, Any]:
    """`shifts`: model, seed, shift, severity, case -> DSC. `strata`: direction, model, seed, case. `cka`: model, seed."""
    return (
        json.loads(path.read_text()) if path.exists() else {"command": COMMAND, "shifts": {}, "strata": {}, "cka": {}}
    )


def keep(path: Path, part: str, *keys: str, value: Any) -> None:
    """Add what was measured."""
    kept = results(path)
    place = kept[part]
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = value
    write_whole(path, json.dumps(kept, indent=1) + "\n")


def known(path: Path, part: str, *keys: str) -> bool:
    place = results(path)[part]
    for key in keys:
        if key not in place:
            return False
        place = place[key]
    return True


def experiment(data: Path | None) -> trials.Experiment:
    """The sarcoma experiment, or the same on other labelled scans, whose results are kept beside the table."""
    if data is None:
        return sarcoma.EXPERIMENT
    with open(data, newline="", encoding="utf-8-sig") as file:
        test = [
            row.get("id") or Path(row["image"]).name.split(".")[0]
            for row in csv.DictReader(file)
            if row["split"] == "test"
        ]
    return replace(sarcoma.EXPERIMENT, name=data.stem, data=lambda: data, test=test, results=data.with_suffix(".results.json"),
                   settings=ctssl.Settings(), spacing_mm=None)  # fmt: skip


def segmenter(source: trials.Experiment, model: str, seed: int, runs: Path) -> Path:
    """The folder of a fine-tuned model; trained now where it is missing."""
    folder = trials.folder_of(source, runs, model, seed)
    if not (folder / "config.json").exists():
        trials.train(source, model, seed=seed, runs=runs, again=True)
    return folder


def under_shifts(source: trials.Experiment, model: str, seed: int, runs: Path, path: Path) -> None:
    """DSC of every test case under every shift. The shifted scans are made once for all models."""
    folder = segmenter(source, model, seed, runs)
    found = ctssl.measure_robustness(source.data(), model=folder, cases=source.test, severities=SEVERITIES, overlays=0,
                                     out=runs / f"robustness-{folder.name}", scans=runs / f"shifted-{source.name}",
                                     progress=True)  # fmt: skip
    table: dict[str, dict[str, dict[str, float]]] = {}
    for row in found.rows:
        table.setdefault(row["shift"], {}).setdefault(str(row["severity"]), {})[row["case"]] = round(row["dsc"], 4)
    keep(path, "shifts", model, str(seed), value=table)


def other_kernel(kernel: str, runs: Path) -> Path:
    """A table that trains on the training cases of one kernel and tests on the test cases of the other."""
    path = runs / f"sarcoma-{kernel}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    train, test = set(split("train")), set(split("test"))
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "label", "split"])
        for row in cases("sarcoma"):
            side = "train" if row["kernel"] == kernel and row["id"] in train else "test"
            if side == "train" or (row["kernel"] != kernel and row["id"] in test):
                writer.writerow([row["id"], *(data_folder() / row[key] for key in ("image", "label")), side])
    return path


def across_kernels(model: str, seed: int, runs: Path) -> None:
    """Both directions of the natural strata."""
    for kernel, other in zip(KERNELS, KERNELS[::-1], strict=True):
        if known(RESULTS, "strata", f"{kernel} to {other}", model, str(seed)):
            continue
        settings = replace(sarcoma.EXPERIMENT.settings, seed=seed,
                           steps=trials.steps_of(sarcoma.EXPERIMENT, model, sarcoma.EXPERIMENT.settings.steps))  # fmt: skip
        report = ctssl.finetune(other_kernel(kernel, runs), model=model, settings=settings, overwrite=True,
                                spacing_mm=sarcoma.EXPERIMENT.spacing_mm,
                                out=runs / f"sarcoma-{kernel}-{model}-{seed}")  # fmt: skip
        found = {case: round(float(np.mean(list(scores.values()))), 4) for case, scores in report.held_out.items()}
        keep(RESULTS, "strata", f"{kernel} to {other}", model, str(seed), value=found)


def reuse(source: trials.Experiment, model: str, seed: int, runs: Path, path: Path) -> None:
    """CKA between the blocks of a pretrained encoder and of the same one after fine-tuning, on the test scans."""
    tuned = ctssl.load_segmenter(segmenter(source, model, seed, runs))
    spacing = tuned.spec.preprocess.spacing_mm if tuned.spec else 2.0
    chosen = {case.name: case.image for case in find_cases(source.data()).cases}
    scans = [ctssl.read(chosen[name]) for name in source.test]
    found = compare(ctssl.load(model), tuned, scans, crops=CROPS, spacing_mm=spacing, progress=True)
    keep(path, "cka", model, str(seed), value=found.matrix.round(4).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[m for m in sarcoma.DESIGN if m != "dynunet"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the segmenters")
    parser.add_argument("--data", type=Path, help="CSV of other labelled scans")
    parser.add_argument("--strata", action="store_true", help="also train on one kernel and test on the other")
    args = parser.parse_args()
    source = experiment(args.data)
    path = results_of(args.data)
    for seed in args.seeds:
        for model in args.models:
            if not known(path, "shifts", model, str(seed)):
                under_shifts(source, model, seed, args.runs, path)
            if model in ctssl.list_models() and not known(path, "cka", model, str(seed)):
                reuse(source, model, seed, args.runs, path)
            if args.strata and args.data is None:
                across_kernels(model, seed, args.runs)
    print(f"{path}; next: python -m training.experiments.study" + (f" --data {args.data}" if args.data else ""))


if __name__ == "__main__":
    main()
