"""Fine-tune on the 26 training cases of the sarcoma data, score the 12 test cases, pretrained and from scratch.

`python -m training.experiments.sarcoma [MODEL ...] [--seeds 0 1]` (about 20 minutes a training on two CPU cores). Results go to
`training/experiments/results/sarcoma.json`, one entry a training, and are printed; `--show` only prints.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

import ctssl
from training.data.corpora import data_folder, split

RESULTS = Path(__file__).parent / "results" / "sarcoma.json"
COMMAND = "python -m training.experiments.sarcoma"


def measure(model: str, *, from_scratch: bool, settings: ctssl.Settings, out: Path) -> dict:
    """One training and its scores."""
    report = ctssl.finetune(data_folder() / "sarcoma", model=model, out=out, hold_out=split("test"), settings=settings,
                            from_scratch=from_scratch, overwrite=True)  # fmt: skip
    cases = {name: round(scores["tumour"], 4) for name, scores in report.held_out.items()}
    return {"seed": settings.seed, "mean_dsc": round(report.mean_dsc, 4), "cases": cases, "settings": asdict(settings)}


def keep(label: str, row: dict) -> None:
    """Add a training to the results; the same seed replaces its older entry."""
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"command": COMMAND, "models": {}}
    rows = [r for r in kept["models"].get(label, []) if r["seed"] != row["seed"]] + [row]
    kept["models"][label] = sorted(rows, key=lambda r: r["seed"])
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def table() -> str:
    """The results as Markdown."""
    kept = json.loads(RESULTS.read_text())
    lines = ["| encoder | mean DSC | each seed |", "|---|---|---|"]
    for label, rows in kept["models"].items():
        means = [row["mean_dsc"] for row in rows]
        lines.append(f"| {label} | {np.mean(means):.3f} | {', '.join(f'{m:.3f}' for m in means)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["swin-wild-mim"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--steps", type=int, default=ctssl.Settings().steps)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the segmenters")
    parser.add_argument("--show", action="store_true", help="print what was measured, train nothing")
    args = parser.parse_args()
    for seed in [] if args.show else args.seeds:
        for model in args.models:
            for from_scratch in (False, True):
                label = f"{model} from scratch" if from_scratch else model
                out = args.out / f"sarcoma-{label.replace(' ', '-')}-{seed}"
                keep(
                    label,
                    measure(
                        model, from_scratch=from_scratch, settings=ctssl.Settings(steps=args.steps, seed=seed), out=out
                    ),
                )
    print(table())


if __name__ == "__main__":
    main()
