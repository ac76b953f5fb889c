"""Do fine-tuned segmenters mark the same in a smooth and a sharp reconstruction of one acquisition?

`python -m training.experiments.kernels [MODEL ...] [--seeds 0 1 2]` takes what `python -m training.experiments.lung MODEL ...
--few-shot 50` left in `runs`, segments both chests of `paired_kernels` (two patients, two reconstructions each, no masks) and
keeps how far the two masks agree. Two patients can show no difference between starts; the numbers are kept because a real pair
of kernels is what the simulated shifts of `training.experiments.robustness` stand for. Beside them the released segmenters: these
were taught with chests that hold no tumour, the others mark litres of a chest. `training.experiments.study` shows them.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import ctssl
from ctssl.robustness.pairs import agreement, summarise
from training.data.corpora import data_folder
from training.experiments import lung, trials
from training.experiments.shifts_proof import PAIRS

RESULTS = Path(__file__).parent / "results" / "kernels.json"
COMMAND = "python -m training.experiments.kernels"
SHOTS = 50
RELEASED = ("lung-tumour-vit-wild-lesions", "lung-tumour-chest-vit-wild-lesions")
MODELS = [
    "vit-scratch",
    "vit-wild-contrastive",
    "vit-wild-lesions",
    "swin-scratch",
    "swin-wild-lesions",
    *RELEASED,
]


def pairs() -> list[tuple[str, Path, Path]]:
    """Return name, smooth and sharp scan of each pair."""
    folder = data_folder() / "paired_kernels"
    return [(name, folder / f"{one}.nii.gz", folder / f"{two}.nii.gz") for name, (one, two) in PAIRS.items()]


def measure(segmenter: str | Path, seed: int) -> dict[str, Any]:
    """Return the agreement of a segmenter's masks on each pair."""
    return {"seed": seed, "pairs": agreement(ctssl.load_segmenter(segmenter), pairs(), progress=True)}


def table_rows(models: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a row for each start: DSC between the two masks, their volumes, cosine of the embeddings; means over seeds."""
    rows = []
    for model, trained in models.items():
        each = [summarise(one["pairs"]) for one in trained]
        row: dict[str, Any] = {"start": model, "trainings": len(trained)}
        row["DSC of the two masks"] = round(float(np.mean([one["dsc"] for one in each])), 3)
        for number, patient in enumerate(PAIRS):
            found = [one["pairs"][number] for one in trained]
            ml = [np.mean([one[key] for one in found]) for key in ("first_ml", "second_ml")]
            row[f"{patient}: ml, smooth and sharp"] = " and ".join(f"{one:.0f}" for one in ml)
        row["cosine of the embeddings"] = round(float(np.mean([one["embedding_cosine"] for one in each])), 3)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the segmenters")
    args = parser.parse_args()
    for seed in args.seeds:
        for model in args.models:
            label = trials.label_of(model, "light", SHOTS)
            folder = trials.folder_of(lung.EXPERIMENT, args.runs, label, seed)
            known = {row["seed"] for row in trials.read(RESULTS)["models"].get(model, [])}
            if model in RELEASED:
                if not known:
                    trials.keep(RESULTS, COMMAND, model, measure(model, 0))
            elif not folder.exists():
                print(
                    f"{folder} is not there: python -m training.experiments.lung {model} --few-shot {SHOTS}"
                )
            elif seed not in known:
                trials.keep(RESULTS, COMMAND, model, measure(folder, seed))


if __name__ == "__main__":
    main()
