"""Fine-tune on the 26 training cases of the sarcoma data and score the 12 test cases, models and baselines alike.

`python -m training.experiments.sarcoma [MODEL ...] [--seeds 0 1 2] [--minutes 6 | --steps 600]` trains each model with each
seed; without names the core design, {swin, vit} x {wild, self} x {mim, smit}, both encoders from scratch and nnU-Net's
network. A training that is in `training/experiments/results/sarcoma.json` with the same settings is not done again, and one
that was interrupted goes on. `--show` only prints.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

import ctssl
from ctssl.evaluation import holm, interval, paired
from training.data.corpora import data_folder, split

RESULTS = Path(__file__).parent / "results" / "sarcoma.json"
COMMAND = "python -m training.experiments.sarcoma"
DESIGN = [f"{encoder}-{corpus}-{pretext}" for encoder in ("swin", "vit") for corpus in ("wild", "self")
          for pretext in ("mim", "smit")] + ["swin-scratch", "vit-scratch", "dynunet"]  # fmt: skip


def measure(model: str, *, settings: ctssl.Settings, out: Path) -> dict:
    """One training and its scores."""
    report = ctssl.finetune(data_folder() / "sarcoma", model=model, out=out, hold_out=split("test"), settings=settings,
                            overwrite=True)  # fmt: skip
    cases = {name: round(scores["tumour"], 4) for name, scores in report.held_out.items()}
    return {"seed": settings.seed, "mean_dsc": round(report.mean_dsc, 4), "cases": cases, "settings": asdict(settings)}


def results() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"command": COMMAND, "models": {}}


def keep(label: str, row: dict) -> None:
    """Add a training to the results; the same seed replaces its older entry."""
    RESULTS.parent.mkdir(exist_ok=True)
    kept = results()
    rows = [r for r in kept["models"].get(label, []) if r["seed"] != row["seed"]] + [row]
    kept["models"][label] = sorted(rows, key=lambda r: r["seed"])
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def done(label: str, settings: ctssl.Settings) -> bool:
    """Whether this training is in the results. Settings that came later count as their defaults."""
    rows = results()["models"].get(label, [])
    return any({**asdict(ctssl.Settings()), **row["settings"]} == asdict(settings) for row in rows)


def of_cases(label: str) -> dict[str, float]:
    """DSC of each test case, averaged over the seeds."""
    rows = results()["models"][label]
    return {case: float(np.mean([row["cases"][case] for row in rows])) for case in rows[0]["cases"]}


def table() -> str:
    """The results as Markdown: DSC with its interval over patients, and each model against its encoder from scratch."""
    labels = list(results()["models"])
    lines = ["| model | seeds | mean DSC | median | against scratch | p |", "|---|---|---|---|---|---|"]
    against = {}
    for label in labels:
        scratch = f"{label.split('-')[0]}-scratch"
        if scratch in labels and label != scratch:
            pairs = [{"patient": c, "dsc": d, "other_dsc": of_cases(scratch)[c]} for c, d in of_cases(label).items()]
            against[label] = paired(pairs, ("dsc",))[0]
    for row, p in zip(against.values(), holm([row["p"] for row in against.values()]), strict=True):
        row["p_holm"] = p
    for label in labels:
        values = of_cases(label)
        low, high = interval([{"patient": c, "dsc": d} for c, d in values.items()], "dsc")
        gain = against.get(label)
        cells = [label, str(len(results()["models"][label])), f"{np.mean(list(values.values())):.3f} ({low:.3f}-{high:.3f})",
                 f"{np.median(list(values.values())):.3f}", f"{gain['difference']:+.3f}" if gain else "",
                 f"{gain['p_holm']:.3f}" if gain else ""]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=DESIGN)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=ctssl.Settings().steps)
    parser.add_argument("--minutes", type=float, help="of training for each, instead of steps")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the segmenters")
    parser.add_argument("--show", action="store_true", help="print what was measured, train nothing")
    args = parser.parse_args()
    for seed in [] if args.show else args.seeds:
        for model in args.models:
            settings = ctssl.Settings(steps=args.steps, minutes=args.minutes, seed=seed)
            if not done(model, settings):
                keep(model, measure(model, settings=settings, out=args.out / f"sarcoma-{model}-{seed}"))
    print(table())


if __name__ == "__main__":
    main()
