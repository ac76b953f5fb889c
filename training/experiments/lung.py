"""Fine-tune on lung tumours of one public collection and judge on patients of another, as the paper does.

`python -m training.experiments.lung [MODEL ...] [--seeds 0 1 2] [--few-shot 50] [--steps 500] [--choose]` trains each
model with each seed on NSCLC-Radiomics (150 training patients, or `--few-shot` of them) and scores the off-centre boxes
of the 98 patients of NSCLC-Radiogenomics. `--set encoder_lr=1e-4 warmup_head=0.2` changes the recipe, in rows of their
own. With `--choose` the 40 other Radiomics patients are scored instead: recipes are chosen there, and Radiogenomics is
looked at for the tables alone. `--screen` tells two starts apart in about ten minutes of two cores.

There are no validation cases: the last averaged weights are kept, with a threshold of 0.5. See
`training.experiments.sarcoma` for what is kept and printed.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import ctssl
from ctssl.datasets.case import read_case
from ctssl.datasets.layouts import find_cases
from ctssl.evaluation.statistics import mean_interval
from ctssl.files.atomic import write_whole
from ctssl.files.text import csv_text
from ctssl.finetuning.curve import draw_curve
from ctssl.finetuning.start import BASELINES
from ctssl.metrics import dsc
from ctssl.zoo import MODELS
from training.data.corpora import cases, data_folder, lung_split
from training.experiments import trials

NO_LABELS = ", no labels"
MIRRORED = ", mirrored"
HERE = Path(__file__).parent / "results"
PICTURE = HERE / "lung.png"
DESIGN = ["vit-scratch", "vit-wild-contrastive", "swin-scratch", "swin-wild-contrastive"]
SETTINGS = ctssl.Settings(steps=500, crop=32, batch=8, ema=0.99, validation=0.0)


def table_of(side: str, folder: Path = Path("runs/lung")) -> Path:
    """Write the table of cases for `ctssl finetune` and return its path.

    Args:
        side: "choose" holds out 40 patients of Radiomics, "test" the 98 of Radiogenomics; all by their off-centre boxes.
        folder: where to write.
    """
    split = lung_split()
    held_out = split["choose"] if side == "choose" else [row["id"] for row in cases("lung_radiogenomics")]
    group = "lung_radiomics_nc" if side == "choose" else "lung_radiogenomics"
    rows = [row_of("lung_radiomics_nc", name, "", "train") for name in split["train"]]
    rows += [row_of(group, name, "_offcentre", "test") for name in held_out]
    return write_rows(rows, folder / f"{side}.csv")


def write_rows(rows: list[dict[str, str]], path: Path) -> Path:
    """Write a table of cases and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, csv_text(rows))
    return path


def row_of(group: str, name: str, box: str, split: str) -> dict[str, str]:
    """Return the row of a case. `box`: "" for the whole cube, "_offcentre" for its fixed off-centre box."""
    image, label = (
        data_folder() / group / f"{kind}{box}" / f"{name}.nii.gz" for kind in ("images", "labels")
    )
    unique = case_name(group, name)
    return {"id": unique, "image": str(image), "label": str(label), "patient": unique, "split": split}


def case_name(group: str, name: str) -> str:
    """Return the name of a case; both collections number their patients alike."""
    return f"{'radiomics' if group == 'lung_radiomics_nc' else 'radiogenomics'}-{name}"


def _experiment(kind: str, settings: ctssl.Settings = SETTINGS) -> trials.Experiment:
    """Return the experiment of a kind: "" judges on Radiogenomics, anything else on the patients that choose."""
    return trials.Experiment(
        f"lung-{kind}" if kind else "lung",
        "python -m training.experiments.lung" + (f" --{kind}" if kind else ""),
        lambda: table_of("choose" if kind else "test"),
        [],
        HERE / (f"lung_{kind}.json" if kind else "lung.json"),
        DESIGN,
        spacing_mm=1.5,
        window_hu=(-1000.0, 400.0),
        settings=settings,
    )


EXPERIMENT, CHOOSING = _experiment(""), _experiment("choose")
SCREEN = _experiment("screen", replace(SETTINGS, steps=200))


def score(model: str | Path, experiment: trials.Experiment, *, tta: bool = False) -> dict[str, Any]:
    """Return the row of a segmenter that is used as it is; `tta`: averaged over all mirrorings."""
    net, found = ctssl.load_segmenter(model), {}
    for case in tqdm(find_cases(experiment.data()).cases, desc=str(model)):
        if case.split == "test":
            scan, truth = read_case(case)
            found[case.name] = round(dsc(net.segment(scan, tta=tta).array > 0, truth.array > 0), 4)
    mean = round(float(np.mean(list(found.values()))), 4)
    settings = {"threshold": net.threshold, "tta": tta}
    return {"seed": 0, "mean_dsc": mean, "cases": found, "curve": [], "settings": settings}


def points_of(models: dict[str, list[dict[str, Any]]]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the points of the learning curves and the DSC without labels, of published models and initial weights with
    the usual recipe and steps."""
    points, levels = [], {}
    for label, rows in models.items():
        if re.split("[ ,]", label)[0] not in (*MODELS, *BASELINES):
            continue
        values = trials.of_cases(rows)
        mean = float(np.mean(list(values.values())))
        if label.endswith(NO_LABELS):
            levels[label] = mean
        elif found := re.fullmatch(r"([^ ,]+)(?:, (\d+) cases)?", label):
            low, high = mean_interval(np.array(list(values.values())))
            shots = int(found[2] or len(lung_split()["train"]))
            points.append({"model": found[1], "shots": shots, "dsc": mean, "low": low, "high": high})
    return sorted(points, key=lambda point: (point["model"], point["shots"])), levels


def main() -> None:
    parser = trials.options(__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--choose", action="store_true", help="score the 40 patients that choose recipes")
    which.add_argument(
        "--screen", action="store_true", help="the same after 200 steps on 50 patients, unless told otherwise"
    )
    parser.add_argument(
        "--zero", action="store_true", help="score segmenters as they are, without any fine-tuning"
    )
    parser.add_argument("--tta", action="store_true", help="with --zero: averaged over all mirrorings")
    parser.add_argument(
        "--draw", action="store_true", help="draw learning curves of what was measured, train nothing"
    )
    args = parser.parse_args()
    if args.tta and not args.zero:
        parser.error("--tta scores a segmenter as it is; add --zero")
    experiment = SCREEN if args.screen else CHOOSING if args.choose else EXPERIMENT
    if args.draw:
        points, levels = points_of(trials.read(EXPERIMENT.results)["models"])
        draw_curve(points, PICTURE, levels=levels)
        return
    if args.screen:
        args.few_shot = args.few_shot or 50
    if not args.zero:
        trials.run(experiment, args)
        return
    for model in args.models:
        label = f"{Path(model).name}{NO_LABELS}" + (MIRRORED if args.tta else "")
        trials.keep(experiment.results, experiment.command, label, score(model, experiment, tta=args.tta))
    print(trials.table(experiment.results))


if __name__ == "__main__":
    main()
