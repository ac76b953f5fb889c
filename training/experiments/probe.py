"""Do the frozen features know a tumour from other tissue? A linear probe and nearest neighbours on single
voxels (`ctssl.finetuning.probe_voxels`, `probe_fits`).

`python -m training.experiments.probe [MODEL ...] [--seeds 3]` (a few minutes a model). From each patient up
to 200 voxels of the tumour and 200 of other tissue, 25 and 25 from each of 8 cubes of 32 voxels; the feature
of a voxel is every map of the encoder on that cube, interpolated at its place. A third of the patients are
held out, anew for each seed. Sarcoma: the 26 training cases alone, at 2 mm; what follows
from a probe (a pretraining that has to be mended) must not have seen the test cases. Nodules: at
`--nodule-spacing`, since a nodule of 10 mm is one token at 2 mm. Each encoder sees its own window.

The scans are cut out around their tumours, so where a voxel lies in the scan tells all (AUROC 0.92 and 0.99),
and an encoder with learned positions passes that on. Hence the cubes: they lie so that the tumour may be
anywhere in them. What is left of it is measured beside the models ("position alone"), with the intensity
alone (the voxel and three neighbourhoods) and the same encoders with random weights. Results go to
`results/probe.json`; `--show` only prints, `--write` puts the short table into model_cards/RESULTS.md.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import ctssl
from ctssl.datasets.case import Case
from ctssl.encoders import ENCODERS
from ctssl.evaluation.statistics import mean_interval
from ctssl.files.atomic import write_whole
from ctssl.files.text import markdown
from ctssl.finetuning.probe import GREY, PLACE
from ctssl.finetuning.probe_fits import by_patient, measure_each
from ctssl.finetuning.probe_voxels import ProbedScan, encoded, intensity, position, read_scans
from ctssl.zoo import Preprocess
from training.data.corpora import cases, data_folder, split
from training.experiments.trials import lock_results, write_table

RESULTS = Path(__file__).parent / "results" / "probe.json"
COMMAND = "python -m training.experiments.probe"


def scans(group: str, preprocess: Preprocess) -> list[ProbedScan]:
    """Return the scans of a group; of sarcoma without the test cases, which what a probe decides must not have seen."""
    hidden = set(split("test")) if group == "sarcoma" else set()
    root = data_folder()
    found = [
        Case(row["id"], root / row["image"], root / row["label"], row["id"])
        for row in cases(group)
        if row["id"] not in hidden
    ]
    return read_scans(found, preprocess, label=None, progress=True)


def beats_its_twin(results: dict, model: str) -> bool:
    """Return whether the linear probe's patient-level AUROC is above the random twin's, with the whole interval, in
    some task."""
    for task in results["tasks"].values():
        pair = [by_patient(task[label], "linear", "auroc") for label in (model, twin(model))]
        if mean_interval(pair[0] - pair[1])[0] > 0:
            return True
    return False


def cell(runs: list[dict], probe: str, metric: str) -> str:
    """Return the mean over patients and its interval, for a table."""
    values = by_patient(runs, probe, metric)
    low, high = mean_interval(values)
    return f"{values.mean():.3f} ({low:.3f}-{high:.3f})"


def table(results: dict | None = None) -> str:
    """Return the results as Markdown: AUROC over patients, with intervals."""
    kept: dict = results or json.loads(RESULTS.read_text())
    text = ""
    for task, models in kept["tasks"].items():
        text += f"**{task}** ({kept['spacing_mm'][task]:g} mm)\n\n"
        columns = ("features", "linear AUROC", "AP", "k-NN AUROC", "AP")
        places = [(probe, metric) for probe in ("linear", "knn") for metric in ("auroc", "ap")]
        lines = [[model, *(cell(runs, *place) for place in places)] for model, runs in models.items()]
        text += markdown(columns, lines) + "\n"
    return text


def short() -> str:
    """Return the linear AUROC of every model and reference in both tasks, and whether a model beats its random twin."""
    kept = json.loads(RESULTS.read_text())
    titles = [f"{task.replace('_', ' ')}, {kept['spacing_mm'][task]:g} mm" for task in kept["tasks"]]
    lines = []
    names = {name: None for models in kept["tasks"].values() for name in models}
    for name in sorted(names, key=lambda n: (n not in ctssl.list_models(), n)):
        cells = [cell(models[name], "linear", "auroc") for models in kept["tasks"].values()]
        known = name in ctssl.list_models()
        lines.append([name, *cells, ("yes" if beats_its_twin(kept, name) else "no") if known else ""])
    return markdown(["frozen features", *titles, "better than random weights"], lines)


def twin(model: str) -> str:
    """Return the name of this model's encoder without its training: one for all models that share it and its window."""
    low, high = window(model)
    detail = "" if (low, high) == Preprocess().window_hu else f", {low:g} to {high:g} HU"
    return f"{model.split('-')[0]} (random weights{detail})"


def is_pretrained(model: str) -> bool:
    """Return whether a pretext task made the model, and no fine-tuning.

    >>> is_pretrained("vit-wild-lesions"), is_pretrained("lung-tumour-vit-wild-lesions")
    (True, False)
    """
    spec = ctssl.info(model)
    return model == f"{spec.encoder}-{spec.corpus}-{spec.pretext}"


def window(model: str) -> tuple[float, float]:
    """Return the window of a model in HU; the usual one for a name that is not in the table."""
    known = model in ctssl.list_models()
    return ctssl.info(model).preprocess.window_hu if known else Preprocess().window_hu


def random_twins(model: str, seeds: int) -> list[Any]:
    """Return the model's encoder as it would be without training, once a seed."""
    spec, twins = ctssl.info(model), []
    for seed in range(seeds):
        torch.manual_seed(1000 + seed)
        twins.append(ENCODERS[spec.encoder](**spec.encoder_args).eval())
        twins[-1].spec = replace(spec, name=twin(model))
    return twins


def begun(spacing: dict[str, float], seeds: int) -> dict[str, Any]:
    """Return what was measured so far, or begin. Raises `SystemExit` where it was measured with other settings."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if kept and (kept["spacing_mm"], kept["seeds"]) != (spacing, seeds):
        raise SystemExit(
            f"{RESULTS} was measured with {kept['seeds']} seeds at {kept['spacing_mm']} mm; ask for the same, or remove it"
        )
    if not kept:
        tasks: dict[str, Any] = {task: {} for task in spacing}
        kept = {"command": COMMAND, "seeds": seeds, "spacing_mm": spacing, "tasks": tasks, "weights": {}}
        write_whole(RESULTS, json.dumps(kept) + "\n")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", default=[name for name in ctssl.list_models() if is_pretrained(name)]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nodule-spacing", type=float, default=0.75)
    parser.add_argument(
        "--tasks", nargs="+", choices=["sarcoma", "lung_nodules"], default=["sarcoma", "lung_nodules"]
    )
    parser.add_argument("--show", action="store_true", help="print what was measured, measure nothing")
    parser.add_argument(
        "--write",
        action="store_true",
        help="write the short table to model_cards/RESULTS.md, measure nothing",
    )
    args = parser.parse_args()
    if args.write:
        write_table("probe", short())
    if args.show or args.write:
        print(table())
        return
    spacing = {"sarcoma": Preprocess().spacing_mm, "lung_nodules": args.nodule_spacing}
    kept = begun(spacing, args.seeds)
    usual = Preprocess().window_hu  # the first: "intensity alone" sees it
    windows = sorted({window(name) for name in args.models}, key=lambda hu: hu != usual)
    for task, hu in [(task, hu) for task in spacing if task in args.tasks for hu in windows]:
        group = scans(task, Preprocess(spacing[task], hu))
        models = [name for name in args.models if window(name) == hu]
        twins = {twin(name): name for name in models}
        plain = {PLACE: position, GREY: intensity}
        references = [label for label in (*plain, *twins) if label not in kept["tasks"][task]]
        for label in tqdm([*references, *models], desc=task):
            if label in twins:  # other random weights for each seed
                per_seed = measure_each(
                    group, [encoded(one) for one in random_twins(twins[label], args.seeds)]
                )
            else:
                features = plain.get(label) or encoded(ctssl.load(label))
                per_seed = measure_each(group, [features] * args.seeds)
            with lock_results(RESULTS.parent):  # another process may have measured other models
                kept = json.loads(RESULTS.read_text())
                kept["tasks"][task][label] = per_seed
                if label in models:
                    kept["weights"].setdefault(task, {})[label] = ctssl.info(label).sha256
                write_whole(RESULTS, json.dumps(kept) + "\n")
    print(table(kept))
    for name in args.models:
        print(f"{name}: {'beats' if beats_its_twin(kept, name) else 'does not beat'} its random twin")


if __name__ == "__main__":
    main()
