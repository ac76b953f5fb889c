"""A segmenter of lung tumours that anyone may use: trained on NSCLC-Radiogenomics, judged on NSCLC-Radiomics.

`python -m training.experiments.lung_tumour [MODEL ...] [--seeds 0]` trains on 88 of the 98 patients of Radiogenomics (cubes
of 92 mm around their tumours; ten more choose weights and threshold) and on `HEALTHY`, twelve whole chests without a known
tumour whose masks are empty, so that it does not mark all the rest of a body. With `--chest` half of the crops are of these
chests and of `ELSEWHERE`, for 2,000 steps, and two chests help to choose the threshold. Scored are the off-centre boxes of the
190 patients of Radiomics, which no training has seen. `--fold K` (0 to 4) leaves out a fifth of Radiogenomics instead and scores
their off-centre boxes; with `--tta` what such a training of the first seed left in `runs` is scored once more, averaged over all
mirrorings. `python -m training.release.segmenter lung-tumour MODEL` (or `lung-tumour-chest`) publishes it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

import ctssl
from ctssl.evaluation.statistics import mean_interval
from ctssl.files.text import markdown
from training.data.corpora import cases, data_folder
from training.experiments import lung, trials

RESULTS = Path(__file__).parent / "results" / "lung_tumour.json"
VALIDATING = 10
FOLDS = 5
HEALTHY = (
    "cap001",
    "cap002",
    "normal001",
    "normal002",
    "P001",
    "P002",
    "CPTAC-PDA_C3N-00249_chest",
    "ACRIN-FLT-Breast_c",
    "ACRIN-FLT-Breast_001",
    "RIDER-Pilot_0117",
    "aorta_ct_cropped",
    "pulmonary_ct_cropped",
)
"""Chests of `wild` and `wild2` whose collections are not of lung cancer; three show pneumonia."""
ELSEWHERE = (
    "TCGA-OV_09-2043_abdomen",
    "CRLM-CT-1004",
    "CRLM-CT-1006",
    "TCGA-AY-4070_abdpelv",
    "TCGA-BC-A10W_abdpelv",
    "Pancreas-CT-CB_001",
    "CORT_liver",
    "AutoRadiomics_CT_head",
)
"""Scans of `wild` and `wild2` of other parts of the body."""
CHOOSING = ("normal002", "CPTAC-PDA_C3N-00249_chest")
"""Chests of `HEALTHY` that help to choose the threshold, and are not learned from."""


def table_of(folder: Path = Path("runs/lung"), *, fold: int | None = None, chest: bool = False) -> Path:
    """Write the table of cases, and an empty mask for each scan without a tumour, and return its path.

    Args:
        folder: where to write.
        fold: hold out this part of Radiogenomics, instead of Radiomics.
        chest: with `ELSEWHERE`, and `CHOOSING` to validate on.
    """
    group, name = "lung_radiomics_nc", "lung_tumour_chest" if chest else "lung_tumour"
    learn, judged = (
        sorted(row["id"] for row in cases("lung_radiogenomics")),
        sorted(row["id"] for row in cases(group)),
    )
    if fold is not None:
        group, name = "lung_radiogenomics", f"lung_tumour_{fold}"
        order = np.random.default_rng(1).permutation(learn)
        judged = sorted(order[fold::FOLDS].tolist())
        learn = [one for one in learn if one not in judged]
    drawn = set(np.random.default_rng(0).choice(learn, VALIDATING, replace=False).tolist())
    rows = [lung.row_of("lung_radiogenomics", one, "", "val" if one in drawn else "train") for one in learn]
    free = (*HEALTHY, *ELSEWHERE) if chest else HEALTHY
    images = {row["id"]: row["image"] for row in cases("wild") + cases("wild2") if row["id"] in free}
    for one in free:
        image = data_folder() / images[one]
        mask = folder / "empty" / f"{one}.nii.gz"
        if not mask.exists():
            scan = ctssl.read(image)
            mask.parent.mkdir(parents=True, exist_ok=True)
            ctssl.Volume(np.zeros(scan.shape, np.uint8), scan.affine).save(mask)
        paths = {"image": str(image), "label": str(mask.resolve())}
        side = "val" if chest and one in CHOOSING else "train"
        rows.append({"id": f"healthy-{one}", **paths, "patient": f"healthy-{one}", "split": side})
    rows += [lung.row_of(group, one, "_offcentre", "test") for one in judged]
    return lung.write_rows(rows, folder / f"{name}.csv")


EXPERIMENT = trials.Experiment(
    "lung-tumour",
    "python -m training.experiments.lung_tumour",
    table_of,
    [],
    RESULTS,
    ["vit-wild-contrastive"],
    spacing_mm=1.5,
    window_hu=(-1000.0, 400.0),
    settings=ctssl.Settings(steps=1500, crop=48, batch=4, ema=0.99, evaluations=10, patience=10),
)
CHEST = replace(
    EXPERIMENT,
    name="lung-tumour-chest",
    command="python -m training.experiments.lung_tumour --chest",
    data=lambda: table_of(chest=True),
    results=RESULTS.with_name("lung_tumour_chest.json"),
    settings=replace(EXPERIMENT.settings, steps=2000, empty=0.5),
)


def of_fold(fold: int) -> trials.Experiment:
    """Return the experiment that leaves out a part of Radiogenomics."""
    return replace(
        EXPERIMENT,
        name=f"lung-tumour-fold{fold}",
        command=f"python -m training.experiments.lung_tumour --fold {fold}",
        data=lambda: table_of(fold=fold),
        results=RESULTS.with_name(f"lung_tumour_fold{fold}.json"),
    )


def folds_table() -> str:
    """Return what the folds gave, and their patients together, as Markdown."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for fold in range(FOLDS):
        for model, rows in trials.read(of_fold(fold).results)["models"].items():
            found.setdefault(model, {})[fold] = trials.of_cases(rows)
    lines = []
    for model, folds in found.items():
        values = [dsc for cases in folds.values() for dsc in cases.values()]
        low, high = mean_interval(np.array(values))
        each = ", ".join(f"{np.mean(list(cases.values())):.3f}" for cases in folds.values())
        mean = f"{np.mean(values):.3f} ({low:.3f}-{high:.3f})"
        lines.append([model, f"{len(folds)} of {FOLDS}", str(len(values)), mean, each])
    return markdown(["model", "folds", "patients", "mean DSC", "each fold"], lines)


def main() -> None:
    parser = trials.options(__doc__)
    parser.add_argument(
        "--chest", action="store_true", help="half of the crops are of scans without a tumour"
    )
    parser.add_argument(
        "--fold", type=int, choices=range(FOLDS), help="hold out a fifth of Radiogenomics instead"
    )
    parser.add_argument("--tta", action="store_true", help="score what --fold left, over all mirrorings")
    args = parser.parse_args()
    if args.fold is not None and args.chest:
        parser.error("--fold is of the usual training; leave --chest out")
    if args.tta and args.fold is None:
        parser.error("--tta scores what --fold K left; add --fold")
    experiment = CHEST if args.chest else EXPERIMENT if args.fold is None else of_fold(args.fold)
    if args.write:
        trials.write_table("lung-tumour-folds", folds_table())
    if not args.tta:
        trials.run(experiment, args)
        return
    for model in args.models or experiment.design:
        row = lung.score(trials.folder_of(experiment, Path("runs"), model, 0), experiment, tta=True)
        trials.keep(experiment.results, experiment.command, model + lung.MIRRORED, row)
    print(trials.table(experiment.results))


if __name__ == "__main__":
    main()
