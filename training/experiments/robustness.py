"""The paper's question with our models: does pretraining make a segmenter robust to how a scan was made?

`python -m training.experiments.robustness [MODEL ...] [--seeds 0 1 2] [--runs runs]` takes the segmenters of
`training.experiments.sarcoma` (those that are not in `--runs` any more are trained again), and for each of
them measures

- every shift of `ctssl.shifts` at severities 1, 3 and 5 on the 12 test cases;
- CKA between the encoder before and after fine-tuning, block by block (from scratch: before is its initial
  weights), and, as what any two networks have in common, between the fine-tuned one and the same network with
  other random weights, and that of the other corpus (`ctssl.pair`), neither of which it comes from;
- the natural strata, for the models of `STRATA`: trained on nine training cases of one kernel, SOFT or
  STANDARD (there are nine and 17; none is kept to choose weights or a threshold), and tested on all test
  cases, so that every patient is seen by a model of the own and by one of the other kernel. One maker, and
  both kernels are smooth in the paper's bins: a weak shift. `--no-strata` leaves them out.

Everything measured goes to `results/robustness.json` at once, with the sha256 of the weights, and is not
measured again while they are the same. `--data CSV` takes other labelled scans (`image,label`, and `split`
where the table says what is tested on, such as the manifests of `training.data.nsclc`) instead of the sarcoma
data, and keeps what it measures beside the CSV; no strata. Then `python -m training.experiments.study [--data
CSV]` writes what follows from it.
"""

import argparse
import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import ctssl
from ctssl.datasets.case import read_case
from ctssl.datasets.layouts import find_cases
from ctssl.datasets.splits import divide
from ctssl.evaluation.scores import labels_of
from ctssl.files.atomic import write_whole
from ctssl.finetuning.start import BASELINES, fresh, published
from ctssl.hub.folder import read_config
from ctssl.metrics import volume_ml
from ctssl.robustness.masks import find_sources
from ctssl.robustness.measure import Grid, left_to_see, measure
from ctssl.shifts import REVISION, SHIFTS
from ctssl.shifts.stamps import CLEAN
from ctssl.similarity import TooFewCrops, compare
from training.data.corpora import cases, data_folder, split
from training.experiments import sarcoma, trials

RESULTS = Path(__file__).parent / "results" / "robustness.json"
COMMAND = "python -m training.experiments.robustness"
SEVERITIES = (1, 3, 5)
CROPS, SIZE = (
    256,
    24,
)  # for CKA: at 4 mm the scans are hardly larger than 48 voxels, and each would give one crop
KERNELS = ("SOFT", "STANDARD")
MODELS = [*sarcoma.DESIGN, "swin-wild-contrastive", "vit-wild-contrastive", "swin-wild-self-smit"]
STRATA = [
    f"{encoder}-{start}" for encoder in ("swin", "vit") for start in ("wild-smit", "self-smit", "scratch")
]


def results_of(data: Path | None) -> Path:
    """Return where what is measured on some data is kept: beside the table, or with our own results."""
    return RESULTS if data is None else data.with_suffix(".robustness.json")


def trainings_of(data: Path) -> Path:
    """Return where the trainings on other data are kept."""
    return data.with_suffix(".results.json")


def results(path: Path) -> dict[str, Any]:
    """Return the results by kind. `shifts`: model, seed, shift, severity, case -> DSC. `strata`: kernel, model, seed, case.
    `cka`: model, seed. `controls`: model, seed, "random" or "twin" -> CKA of each block. `crops`: how many,
    and how many of these apart. `weights`: the same keys -> sha256 of the segmenter (of `shifts` with their
    revision). `facts` of each test case: kernel, volume, and the best DSC that truncation leaves by
    severity."""
    empty = {
        "command": COMMAND,
        "facts": {},
        "shifts": {},
        "strata": {},
        "cka": {},
        "controls": {},
        "crops": {},
        "weights": {},
    }
    return empty | json.loads(path.read_text()) if path.exists() else empty


def keep(path: Path, part: str, *keys: str, value: Any) -> None:
    """Add what was measured."""
    with trials.alone(path.parent):
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
    """Return the sarcoma experiment, or the same on other labelled scans, whose results are kept beside the
    table."""
    if data is None:
        return sarcoma.EXPERIMENT
    held = divide(find_cases(data).cases, None, 0)[1]
    return replace(
        sarcoma.EXPERIMENT,
        name=data.stem,
        data=lambda: data,
        test=[case.name for case in held],
        results=trainings_of(data),
        settings=ctssl.Settings(),
        spacing_mm=None,
    )


def note_facts(source: trials.Experiment, path: Path) -> None:
    """Write down what the study needs to know of the test cases."""
    chosen = {case.name: case for case in find_cases(source.data()).cases}
    kernels = {row["id"]: row["kernel"] for row in cases("sarcoma")} if source is sarcoma.EXPERIMENT else {}
    for name in source.test:
        scan, mask = read_case(chosen[name])
        volume = round(volume_ml(mask.array > 0, spacing_mm=mask.spacing_mm), 2)
        best = {}
        for severity in SEVERITIES:
            seen = ctssl.shift(scan, "truncation", severity=severity)
            each = [
                left_to_see(scan, seen, mask, label, "truncation")["best_dsc"] for label in labels_of(mask)
            ]
            best[str(severity)] = round(float(np.mean(each)), 4)
        keep(
            path,
            "facts",
            name,
            value={"kernel": kernels.get(name, ""), "volume_ml": volume, "best_truncated": best},
        )


def segmenter(source: trials.Experiment, model: str, seed: int, runs: Path) -> Path:
    """Return the folder of a fine-tuned model; trained now where it is missing, or was trained otherwise, or from
    other weights."""
    trials.train(source, model, seed=seed, runs=runs, again=True)
    return trials.folder_of(source, runs, model, seed)


def measured(path: Path, folder: Path, *keys: str) -> bool:
    """Return whether this was measured on the weights that are in the folder now, and by the shifts of now."""
    place = results(path)["weights"]
    for key in keys:
        place = place.get(key, {})
    return known(path, *keys) and place == made_of(folder, keys[0])


def made_of(folder: Path, part: str) -> str:
    return read_config(folder)["sha256"] + (f" shifts {REVISION}" if part == "shifts" else "")


def note(path: Path, folder: Path, *keys: str, value: Any) -> None:
    """Keep what was measured, and on which weights."""
    keep(path, *keys, value=value)
    keep(path, "weights", *keys, value=made_of(folder, keys[0]))


def under_shifts(source: trials.Experiment, model: str, seed: int, runs: Path, path: Path) -> None:
    """DSC of every test case under every shift. The shifted scans are made once for all models."""
    folder = segmenter(source, model, seed, runs)
    if measured(path, folder, "shifts", model, str(seed)):
        return
    chosen = [case for case in find_cases(source.data()).cases if case.name in source.test]
    places = [(CLEAN, 0), *((name, severity) for name in SHIFTS for severity in SEVERITIES)]
    scans = runs / f"shifted-{source.name}-{REVISION}"
    rows = measure(
        find_sources(folder, None, None, "cpu"),
        chosen,
        Grid(places, runs / f"robustness-{folder.name}", scans, seed=0, tolerance_mm=None),
        overwrite=True,
        progress=True,
    )
    labels: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        labels.setdefault((row["shift"], str(row["severity"]), row["case"]), []).append(row["dsc"])
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (shift, severity, case), values in labels.items():
        table.setdefault(shift, {}).setdefault(severity, {})[case] = round(float(np.mean(values)), 4)
    note(path, folder, "shifts", model, str(seed), value=table)


def of_one_kernel(kernel: str, runs: Path) -> Path:
    """Return a table that trains on training cases of one kernel, as many as there are of the rarer, and tests on
    all test cases."""
    path = runs / f"sarcoma-{kernel}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    train, test = set(split("train")), set(split("test"))
    known = {
        name: [row["id"] for row in cases("sarcoma") if row["id"] in train and row["kernel"] == name]
        for name in KERNELS
    }
    fewest = min(map(len, known.values()))
    train = set(np.random.default_rng(0).permutation(sorted(known[kernel]))[:fewest].tolist())
    lines = [["id", "image", "label", "split"]]
    for row in cases("sarcoma"):
        if row["id"] in train | test:
            side = "test" if row["id"] in test else "train"
            lines.append([row["id"], *(str(data_folder() / row[key]) for key in ("image", "label")), side])
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return write_whole(path, text.getvalue())


def across_kernels(model: str, seed: int, runs: Path, path: Path) -> None:
    """Trained on one kernel, and on the other."""
    source = sarcoma.EXPERIMENT
    steps = trials.steps_of(source, model, source.settings.steps)
    settings = replace(source.settings, seed=seed, steps=steps, validation=0.0)
    for kernel in KERNELS:
        folder = runs / f"sarcoma-{kernel}-{model}-{seed}"
        report = ctssl.finetune(
            of_one_kernel(kernel, runs),
            model=model,
            settings=settings,
            overwrite=True,
            keep=True,
            spacing_mm=source.spacing_mm,
            out=folder,
        )
        if not measured(path, folder, "strata", kernel, model, str(seed)):
            found = {
                case: round(float(np.mean(list(scores.values()))), 4)
                for case, scores in report.held_out.items()
            }
            note(path, folder, "strata", kernel, model, str(seed), value=found)


def before_tuning(model: str, seed: int) -> Any:
    """Return the encoder that a fine-tuning started from."""
    if model not in ("swin-scratch", "vit-scratch"):
        return ctssl.load(model)
    return fresh(published(model.split("-")[0]), seed)


def reuse(source: trials.Experiment, model: str, seed: int, runs: Path, path: Path) -> None:
    """CKA on the test scans between the blocks of a fine-tuned encoder and of itself before, and of networks
    that it does not come from."""
    folder = segmenter(source, model, seed, runs)
    wanted = [part for part in ("cka", "controls") if not measured(path, folder, part, model, str(seed))]
    if not wanted:
        return
    chosen = {case.name: case.image for case in find_cases(source.data()).cases}
    scans, tuned = [ctssl.read(chosen[name]) for name in source.test], ctssl.load_segmenter(folder)

    def against(encoder: Any) -> np.ndarray:
        found = compare(encoder, tuned, scans, crops=CROPS, size=SIZE, progress=True)
        for name, count in (("all", found.crops), ("apart", found.apart)):
            keep(path, "crops", name, value=count)
        return found.matrix.round(4)

    try:
        if "cka" in wanted:
            note(path, folder, "cka", model, str(seed), value=against(before_tuning(model, seed)).tolist())
        if "controls" in wanted:
            value = {
                name: np.diag(against(encoder)).tolist() for name, encoder in strangers(model, seed).items()
            }
            note(path, folder, "controls", model, str(seed), value=value)
    except TooFewCrops as error:
        print(f"{model}, seed {seed}: no CKA, {error}")


def strangers(model: str, seed: int) -> dict[str, Any]:
    """Return encoders of the same architecture that a fine-tuning did not start from: "random", and "twin" where
    there is one."""
    found = {"random": fresh(published(model.split("-")[0]), 100 + seed)}
    if model not in BASELINES and ctssl.info(model).corpus in ("wild", "self"):
        pair = ctssl.pair(ctssl.info(model).encoder, ctssl.info(model).pretext)
        (twin,) = [spec.name for spec in pair if spec.name != model]
        found["twin"] = ctssl.load(twin)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the segmenters")
    parser.add_argument("--data", type=Path, help="CSV of other labelled scans")
    parser.add_argument("--steps", type=int, help="of a fine-tuning, instead of the experiment's own")
    parser.add_argument(
        "--strata",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train on one kernel and test on the other too",
    )
    args = parser.parse_args(arguments)
    source = experiment(args.data)
    unknown = [name for name in args.models if name not in (*BASELINES, *ctssl.list_models())]
    if unknown:
        parser.error(f"no model is called {', '.join(unknown)}")
    if args.steps and args.data is None:
        parser.error("--steps is for --data: the sarcoma experiment has its own")
    if args.steps:
        source = replace(source, settings=replace(source.settings, steps=args.steps))
    path = results_of(args.data)
    note_facts(source, path)
    for seed in args.seeds:
        for model in args.models:
            under_shifts(source, model, seed, args.runs, path)
            if model != "dynunet":
                reuse(source, model, seed, args.runs, path)
    for seed in args.seeds if args.strata and args.data is None else []:
        for model in [model for model in STRATA if model in args.models]:
            across_kernels(model, seed, args.runs, path)
    print(
        f"{path}; next: python -m training.experiments.study" + (f" --data {args.data}" if args.data else "")
    )


if __name__ == "__main__":
    main()
