"""What the study says: `python -m training.experiments.study` writes `model_cards/STUDY.json`, `STUDY.md` and its pictures.

Everything follows from `results/sarcoma.json` and `results/robustness.json`, or with `--data CSV` from what was measured on other
scans, and is then written beside that table, with its name in front. Each claim of the paper is a row: what the paper
found, what we found (mean difference over the test patients with its 95% bootstrap interval, seeds averaged), and whether the
two agree: the interval excludes zero on the claimed side, on the other side, or includes it. A claim whose models were not
measured says so.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctssl.curves import Line, area, draw
from ctssl.evaluation import interval
from ctssl.similarity import Similarity
from training.experiments import robustness, trials

STEM = Path(__file__).parent.parent.parent / "model_cards" / "STUDY"
SHOWN = ("{}-wild-smit", "{}-self-smit", "{}-scratch")  # in the picture of the curves
CLEAN = "clean"
LIMITS = """**Limits first.** Encoders were pretrained on 26 wild or 26 self scans (the paper: about 10,000 and about 350),
with 1.6 to 3.2 M parameters (the paper: 46 to 65 M with decoder) and under an hour on two CPU cores. The task is sarcoma of the
limbs instead of lung cancer; tumours are large (17 to 2,333 cc against 4 to 90), scans are cut around them, and there are 12
test patients. The shifts are simulated, but for the kernels of the strata, which are of one maker and both smooth in the
paper's bins. The wild set holds a limb, the task's own anatomy. An interval that includes zero does not show that nothing is
there.
"""


class Claim(NamedTuple):
    """`first` minus `second` should have the sign of `expected` (+1 or -1); `shift`: area under its curve, or clean DSC."""

    text: str
    paper: str
    first: str
    second: str
    shift: str = CLEAN
    expected: int = 1


CLAIMS = [
    Claim("Swin: wild is better than from scratch", "DSC 0.69 against 0.54 (139 cases)", "swin-wild-smit", "swin-scratch"),
    Claim("Swin: wild is better than self", "0.69 against 0.63", "swin-wild-smit", "swin-self-smit"),
    Claim("ViT: wild is better than from scratch", "0.66 against 0.55", "vit-wild-smit", "vit-scratch"),
    Claim("ViT: wild is better than self", "0.66 against 0.64", "vit-wild-smit", "vit-self-smit"),
    Claim("Swin is better than ViT, both wild", "0.69 against 0.66", "swin-wild-smit", "vit-wild-smit"),
    Claim("SMIT is better than masked image prediction alone, Swin wild", "0.69 against 0.64", "swin-wild-smit", "swin-wild-mim"),
    Claim("SMIT is better than contrastive, Swin wild", "0.69 against 0.64", "swin-wild-smit", "swin-wild-contrastive"),
    Claim("Masked image prediction is better than contrastive, Swin wild", "its abstract says so; its table has 0.64 for both",
          "swin-wild-mim", "swin-wild-contrastive"),
    Claim("Sharper kernels: wild is better than from scratch", "median about 0.71 against 0.61 on sharp kernels (p=.006)",
          "swin-wild-smit", "swin-scratch", "kernel_sharp"),
    Claim("Smoother kernels: wild is better than from scratch", "median about 0.78 against 0.67 on smooth kernels (p<.001)",
          "swin-wild-smit", "swin-scratch", "kernel_smooth"),
    Claim("Contrast: wild is better than from scratch", "0.70 against 0.58 with, 0.68 against 0.48 without contrast",
          "swin-wild-smit", "swin-scratch", "contrast"),
    Claim("Thick slices: wild is better than from scratch", "0.62 against 0.57 at 5 mm, sharp (20 cases)",
          "swin-wild-smit", "swin-scratch", "thickness"),
]  # fmt: skip


def scores(model: str, shift: str, kept: dict[str, Any], trained: dict[str, Any] | None = None) -> dict[str, float]:
    """DSC of each test case, or the area under its curve, averaged over seeds; empty where it was not measured.

    `trained`: the trainings' own results, for a clean DSC that was not measured again under shifts.
    """
    found: dict[str, list[float]] = {}
    for table in kept["shifts"].get(model, {}).values():
        places = {
            0: table[CLEAN]["0"],
            **{int(s): cases for s, cases in table.get(shift, {}).items() if shift != CLEAN},
        }
        order = sorted(places)
        for case in places[0]:
            values = [places[s][case] for s in order]
            found.setdefault(case, []).append(area(order, values) if len(order) > 1 else values[0])
    if not found and shift == CLEAN:
        rows = (trained or {}).get(model)
        return trials.of_cases(rows) if rows else {}
    return {case: float(np.mean(values)) for case, values in found.items()}


def judged(claim: Claim, kept: dict[str, Any], trained: dict[str, Any] | None = None) -> dict[str, Any]:
    """The row of a claim."""
    one, two = (scores(model, claim.shift, kept, trained) for model in (claim.first, claim.second))
    row: dict[str, Any] = {
        "claim": claim.text,
        "paper": claim.paper,
        "models": [claim.first, claim.second],
        "shift": claim.shift,
    }
    cases = sorted(set(one) & set(two))
    if not cases:
        return {**row, "verdict": "not measured"}
    away = [{"patient": case, "away": one[case] - two[case]} for case in cases]
    low, high = interval(away, "away")
    mean = float(np.mean([r["away"] for r in away]))
    sure = 1 if low > 0 else -1 if high < 0 else 0
    verdict = "cannot tell" if not sure else "agrees" if sure == claim.expected else "disagrees"
    means = [round(float(np.mean([side[case] for case in cases])), 3) for side in (one, two)]
    return {**row, "n": len(cases), "means": means, "difference": round(mean, 3), "low": round(low, 3),
            "high": round(high, 3), "verdict": verdict}  # fmt: skip


def losses(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """For each model and shift: clean DSC, and what is left at each severity, means over cases and seeds."""
    rows = []
    for model, seeds in sorted(kept["shifts"].items()):
        names = [name for name in next(iter(seeds.values())) if name != CLEAN]
        for shift in names:
            row: dict[str, Any] = {"model": model, "seeds": len(seeds), "shift": shift}
            for severity in (0, *robustness.SEVERITIES):
                values = [table[CLEAN if severity == 0 else shift][str(severity)] for table in seeds.values()]
                row[f"dsc_{severity}"] = round(float(np.mean([list(cases.values()) for cases in values])), 3)
            rows.append(row)
    return rows


def reused(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """For each model: CKA of each block with itself before fine-tuning, averaged over seeds."""
    return [{"model": model, "seeds": len(seeds),
             "blocks": np.mean([np.diag(np.array(m)) for m in seeds.values()], 0).round(3).tolist()}
            for model, seeds in sorted(kept["cka"].items())]  # fmt: skip


def costs(trained: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps to 95% of the last validation DSC, by model."""
    rows = []
    for model, seeds in trained.items():
        found = [steps for row in seeds if (steps := trials.steps_to_share(row)) is not None]
        if found:
            rows.append({"model": model, "seeds": len(found), "steps": round(float(np.mean(found)))})
    return rows


def study(kept: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """What follows from the results of `training.experiments.robustness` and of the trainings."""
    strata = [{"direction": way, "model": model, "seeds": len(seeds),
               "dsc": round(float(np.mean([list(cases.values()) for cases in seeds.values()])), 3)}
              for way, models in kept["strata"].items() for model, seeds in sorted(models.items())]  # fmt: skip
    return {"command": "python -m training.experiments.study", "claims": [judged(claim, kept, trained) for claim in CLAIMS],
            "shifts": losses(kept), "strata": strata, "cka": reused(kept), "costs": costs(trained)}  # fmt: skip


def markdown(found: dict[str, Any], limits: str = LIMITS, pictures: list[Path] | None = None) -> str:
    """`STUDY.md` from `STUDY.json`."""
    lines = ["# Does pretraining in the wild make a segmenter robust? The paper's claims on our data\n", limits,
             f"Made by `{found['command']}` from what `python -m training.experiments.sarcoma` and "
             f"`{robustness.COMMAND}` measured.\n",
             "| claim | the paper | here: mean difference in DSC (95% interval), n | verdict |", "|---|---|---|---|"]  # fmt: skip
    for row in found["claims"]:
        ours = (f"{row['means'][0]:.3f} against {row['means'][1]:.3f}: {row['difference']:+.3f} ({row['low']:+.3f} to "
                f"{row['high']:+.3f}), {row['n']}" if "n" in row else "")  # fmt: skip
        lines.append(f"| {row['claim']} | {row['paper']} | {ours} | {row['verdict']} |")
    tables = {
        "shifts": "DSC under each shift, by severity",
        "strata": "Trained on one kernel, tested on the other",
        "cka": "CKA of each block before and after fine-tuning",
        "costs": "Fine-tuning steps to 95% of the last validation DSC",
    }
    for part, title in tables.items():
        rows = found[part]
        lines.append(f"\n## {title}\n")
        if not rows:
            lines.append("Not measured yet.")
            continue
        lines += ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        lines += ["| " + " | ".join(" ".join(map(str, v)) if isinstance(v, list) else str(v) for v in row.values()) + " |"
                  for row in rows]  # fmt: skip
    if pictures:
        lines.append("\n## Pictures\n")
        lines += [f"![{path.stem.partition('STUDY_')[2].replace('_', ', ')}]({path.name})" for path in pictures]
    return "\n".join(lines) + "\n"


def draw_pictures(kept: dict[str, Any], stem: Path) -> list[Path]:
    """DSC against severity for each encoder, mean and interval over patients; and CKA before and after fine-tuning."""
    made = []
    for encoder in ("swin", "vit"):
        panels: dict[str, dict[str, Line]] = {}
        for model in (name.format(encoder) for name in SHOWN):
            seeds = list(kept["shifts"].get(model, {}).values())
            for shift in [name for name in seeds[0] if name != CLEAN] if seeds else []:
                line: Line = []
                for severity in (0, *robustness.SEVERITIES):
                    tables = [table[CLEAN if severity == 0 else shift][str(severity)] for table in seeds]
                    rows = [{"patient": case, "dsc": float(np.mean([t[case] for t in tables]))} for case in tables[0]]
                    line.append((severity, float(np.mean([r["dsc"] for r in rows])), *interval(rows, "dsc")))
                panels.setdefault(shift, {})[model] = line
        if panels:
            made.append(Path(f"{stem}_curves_{encoder}.png"))
            draw(panels, made[-1])
        if matrices := list(kept["cka"].get(model := SHOWN[0].format(encoder), {}).values()):
            made.append(Path(f"{stem}_cka_{encoder}.png"))
            Similarity(np.mean(matrices, 0), robustness.CROPS, (model, "the same, fine-tuned")).picture(made[-1])
    return sorted(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CSV of other labelled scans, as for training.experiments.robustness")
    args = parser.parse_args()
    source, path = robustness.experiment(args.data), robustness.results_of(args.data)
    stem, limits = STEM, LIMITS
    if args.data is not None:
        stem, limits = args.data.with_suffix(".STUDY"), f"On {len(source.test)} test cases of {args.data.name}.\n"
    kept = robustness.results(path)
    found = study(kept, trials.read(source.results)["models"])
    text = markdown(found, limits, draw_pictures(kept, stem))
    Path(f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n")
    Path(f"{stem}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
