"""What the study says: `python -m training.experiments.study` writes `model_cards/STUDY.json`, `STUDY.md` and
its pictures.

Everything follows from `results/sarcoma.json`, `lung_nodules.json` and `robustness.json`, or with `--data
CSV` from what was measured on other scans, and is then written beside that table, with its name in front.
Each claim of the paper is a row: what the paper found, and what we found: the mean difference over the test
patients (seeds that both models have are averaged), its 95% bootstrap interval, and the p-value of a paired
Wilcoxon test, corrected by Holm over all claims. A claim whose models were not measured says so.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctssl.evaluation.statistics import FEWEST, holm, interval
from ctssl.files.atomic import write_whole
from ctssl.files.text import markdown
from ctssl.robustness.curves import Line, area, draw
from ctssl.shifts import SHIFTS
from ctssl.similarity import Similarity
from training.experiments import lung_nodules, robustness, sarcoma, trials

STEM = Path(__file__).parent.parent.parent / "model_cards" / "STUDY"
SHOWN = ("{}-wild-smit", "{}-self-smit", "{}-scratch")  # in the picture of the curves
CLEAN = "clean"
SURE = 0.05
SEEDS = 3  # below which nothing is said of heat maps and costs
GENERAL = """**Limits first.**

- Encoders were pretrained on 26 wild or 26 self scans (the paper: about 10,000 and about 350), have 1.6 to 3.2 M parameters (the
  paper: 46 to 65 M with decoder), and were trained for about an hour at most on two CPU cores. Segmenters were trained for some
  minutes.
- There are {cases} test cases: only large differences can be seen. "Cannot tell" does not mean that nothing is there.
- The shifts are simulated, and judged on the same patients; the paper compared scans of different patients.
- Seeds (of a training) are averaged, so intervals and p-values are over patients alone. Intervals are of a claim by itself; p is
  corrected over the table, so that an interval above 0 may well come with a p of 1.
- CKA compares crops of {size} voxels, of which {apart} have no voxel in common (the others overlap), by means over a grid of
  4 x 4 x 4 cells. Two networks that have nothing to do with each other can be alike too, above all in their first blocks: the
  table has them as controls.
"""
OURS = """- The task is sarcoma of the limbs instead of lung cancer; tumours are large (17 to 2,333 cc against 4 to 90). The wild
  set holds a limb, the task's own anatomy.
- Scans are cut around their tumours. An ellipsoid in the middle of the scan, drawn without looking at it, is a baseline that no
  shift of the image can harm: a model is robust in earnest only as far as it is better than that.
- Segmenters work at 4 mm, which hides most of what a kernel or a dose changes; the first severity of `thickness` (3 mm) is no
  change on slices of 3.27 mm; `truncation` cuts a circle around the middle of scans that are cut around their tumours, and what
  it cuts off counts as missed; `dose` and `streaks` know nothing of the body outside the cut.
- The kernels of the strata are of one maker, both smooth in the paper's bins, and nine scans of each were trained on.
- The strength of the kernel shift was set by two real pairs of reconstructions, which lie 1.9 and 4.8 apart in sharpness: its
  shape carries over from one pair to the other, its strength does not (`training/experiments/results/shifts_proof.md`).
"""


class Claim(NamedTuple):
    """`first` minus `second` should have the sign of `expected`, or be nothing (0). `shift`: area under its
    curve, or clean."""

    text: str
    paper: str
    first: str
    second: str
    shift: str = CLEAN
    expected: int = 1


CLAIMS = [
    Claim(
        "Swin: wild is better than from scratch",
        "DSC 0.69 against 0.54 (139 cases)",
        "swin-wild-smit",
        "swin-scratch",
    ),
    Claim("Swin: self is better than from scratch", "0.63 against 0.54", "swin-self-smit", "swin-scratch"),
    Claim(
        "Swin: wild is better than self",
        "0.69 against 0.63 (contrast p=.004, without p<.001)",
        "swin-wild-smit",
        "swin-self-smit",
    ),
    Claim("ViT: wild is better than from scratch", "0.66 against 0.55", "vit-wild-smit", "vit-scratch"),
    Claim("ViT: self is better than from scratch", "0.64 against 0.55", "vit-self-smit", "vit-scratch"),
    Claim(
        "ViT: wild and self do not differ for sure",
        "0.66 against 0.64 (contrast p=.064, without p=.61)",
        "vit-wild-smit",
        "vit-self-smit",
        expected=0,
    ),
    Claim("Swin is better than ViT, both wild", "0.69 against 0.66", "swin-wild-smit", "vit-wild-smit"),
    Claim(
        "SMIT is better than masked image prediction alone, Swin wild",
        "0.69 against 0.64",
        "swin-wild-smit",
        "swin-wild-mim",
    ),
    Claim(
        "SMIT is better than contrastive, Swin wild",
        "0.69 against 0.64",
        "swin-wild-smit",
        "swin-wild-contrastive",
    ),
    Claim(
        "Single pretexts do not differ much: masked image prediction, contrastive; Swin wild",
        "0.64 and 0.64 (the abstract of its other version says that the first is better)",
        "swin-wild-mim",
        "swin-wild-contrastive",
        expected=0,
    ),
    Claim(
        "Wild is better than wild, then self; Swin",
        "0.69 against 0.65",
        "swin-wild-smit",
        "swin-wild-self-smit",
    ),
    Claim(
        "Sharper kernels, Swin: wild is better than from scratch",
        "median about 0.71 against 0.61 (p=.006)",
        "swin-wild-smit",
        "swin-scratch",
        "kernel_sharp",
    ),
    Claim(
        "Smoother kernels, Swin: wild is better than from scratch",
        "median about 0.78 against 0.67 (p<.001)",
        "swin-wild-smit",
        "swin-scratch",
        "kernel_smooth",
    ),
    Claim(
        "Smoother kernels, Swin: wild is better than self",
        "median about 0.78 against 0.76 (p<.001)",
        "swin-wild-smit",
        "swin-self-smit",
        "kernel_smooth",
    ),
    Claim(
        "Contrast, Swin: wild is better than from scratch",
        "0.70 against 0.58 with, 0.68 against 0.48 without contrast",
        "swin-wild-smit",
        "swin-scratch",
        "contrast",
    ),
    Claim(
        "Contrast, Swin: wild is better than self",
        "0.70 against 0.66 with, 0.68 against 0.60 without",
        "swin-wild-smit",
        "swin-self-smit",
        "contrast",
    ),
    Claim(
        "Contrast, ViT: wild is better than from scratch",
        "0.67 against 0.60 with, 0.64 against 0.47 without",
        "vit-wild-smit",
        "vit-scratch",
        "contrast",
    ),
    Claim(
        "Thick slices, Swin: wild is better than from scratch",
        "0.62 against 0.57 at 5 mm, sharp (20 cases)",
        "swin-wild-smit",
        "swin-scratch",
        "thickness",
    ),
    Claim(
        "Thick slices, Swin: wild is better than self",
        "0.62 against 0.52 at 5 mm, sharp (20 cases)",
        "swin-wild-smit",
        "swin-self-smit",
        "thickness",
    ),
    Claim(
        "Thick slices, ViT: wild is better than from scratch",
        "0.62 against 0.49 at 5 mm, sharp (20 cases)",
        "vit-wild-smit",
        "vit-scratch",
        "thickness",
    ),
]
PAIRS = [(f"{e}-wild-smit", f"{e}-{other}") for e in ("swin", "vit") for other in ("scratch", "self-smit")]
PRETEXTS = [
    (f"{e}-{c}-smit", f"{e}-{c}-{other}")
    for e in ("swin", "vit")
    for c, other in (("wild", "mim"), ("wild", "contrastive"), ("self", "mim"))
]
SAVED = {
    "swin-wild-smit": "80% fewer epochs",
    "swin-self-smit": "46%",
    "vit-wild-smit": "47%",
    "vit-self-smit": "15%",
}
EXPLAINED = {"swin-scratch": 0.14, "swin-wild-smit": 0.11, "vit-scratch": 0.18, "vit-wild-smit": 0.11}
REUSED = [
    (
        "Contrastive reuses more of its late blocks than SMIT, Swin wild",
        ("swin-wild-contrastive", "swin-wild-smit"),
    ),
    (
        "Self-pretrained SMIT reuses more of its late blocks than wild, Swin",
        ("swin-self-smit", "swin-wild-smit"),
    ),
]


def common(kept: dict[str, Any], *models: str, shift: str = CLEAN) -> list[str]:
    """Return the seeds that all of these models were measured with under a shift, at all severities."""
    places = {(CLEAN, "0")} | {(shift, str(severity)) for severity in robustness.SEVERITIES if shift != CLEAN}
    found = [
        {
            seed
            for seed, table in kept["shifts"].get(model, {}).items()
            if all(severity in table.get(name, {}) for name, severity in places)
        }
        for model in models
    ]
    return sorted(set.intersection(*found))


def scores(model: str, shift: str, kept: dict[str, Any], seeds: list[str]) -> dict[str, float]:
    """Return the DSC of each test case, or the area under its curve, averaged over seeds; empty where it was not
    measured."""
    found: dict[str, list[float]] = {}
    for table in (kept["shifts"].get(model, {}).get(seed) for seed in seeds):
        places = {
            0: table[CLEAN]["0"],
            **{int(s): cases for s, cases in table.get(shift, {}).items() if shift != CLEAN},
        }
        order = sorted(places)
        for case in places[0]:
            values = [places[s][case] for s in order]
            found.setdefault(case, []).append(area(order, values) if len(order) > 1 else values[0])
    return {case: float(np.mean(values)) for case, values in found.items()}


def difference(one: dict[str, float], two: dict[str, float]) -> dict[str, Any]:
    """Return the comparison of the same cases: n, both means, the mean difference with its interval, and p."""
    found = trials.gained(one, two)
    means = [round(float(np.mean([side[case] for case in one])), 3) for side in (one, two)]
    rounded = {key: round(found[key], 3) for key in ("difference", "low", "high")}
    return {"n": len(one), "means": means, **rounded, "p": found["p"]}


def judged(claims: list[Claim], kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each claim; Holm over those that could be tested."""
    rows = []
    for claim in claims:
        row: dict[str, Any] = {
            "claim": claim.text,
            "paper": claim.paper,
            "models": [claim.first, claim.second],
            "shift": claim.shift,
            "expected": claim.expected,
        }
        if seeds := common(kept, claim.first, claim.second, shift=claim.shift):
            one, two = (scores(model, claim.shift, kept, seeds) for model in (claim.first, claim.second))
            row |= {"seeds": len(seeds), **difference(one, two)}
        rows.append(row)
    corrected(rows)
    for row in rows:
        row["verdict"] = verdict(row)
    return rows


def corrected(rows: list[dict[str, Any]]) -> None:
    """`p_holm` beside every `p`; what is not defined is None, as JSON has it."""
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p"], row["p_holm"] = (
            None if np.isnan(value) else round(float(value), 4) for value in (row["p"], p)
        )


def verdict(row: dict[str, Any]) -> str:
    """Return "agrees" or "disagrees" where the corrected test is sure of a sign; a claim that nothing is there can only
    be contradicted."""
    if "n" not in row:
        return "not measured"
    if row["p_holm"] is None or row["p_holm"] >= SURE:
        return "cannot tell"
    return "agrees" if np.sign(row["difference"]) == row["expected"] else "disagrees"


def lost(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Return robustness itself: how much less DSC the wild model loses under each shift than another one (positive:
    it loses less)."""
    rows: list[dict[str, Any]] = []
    for first, second in PAIRS:
        seeds = common(kept, first, second)
        shifts = [name for name in kept["shifts"][first][seeds[0]] if name != CLEAN] if seeds else []
        for shift in shifts:
            sides = []
            for model in (first, second):
                clean, under = (scores(model, name, kept, seeds) for name in (CLEAN, shift))
                sides.append({case: under[case] - clean[case] for case in clean})
            rows.append(
                {"model": first, "against": second, "shift": shift, "seeds": len(seeds), **difference(*sides)}
            )
    corrected(rows)
    return rows


def pretexts(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare SMIT with the single pretexts, for each encoder and corpus: DSC, clean and over the severities of
    each shift."""
    rows: list[dict[str, Any]] = []
    for first, second in PRETEXTS:
        for shift in (CLEAN, *SHIFTS):
            if seeds := common(kept, first, second, shift=shift):
                sides = [scores(model, shift, kept, seeds) for model in (first, second)]
                rows.append(
                    {
                        "model": first,
                        "against": second,
                        "shift": shift,
                        "seeds": len(seeds),
                        **difference(*sides),
                    }
                )
    corrected(rows)
    return rows


def losses(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Return, for each model and shift, clean DSC, and what is left at each severity, means over cases and seeds."""
    rows = []
    for model, seeds in sorted(kept["shifts"].items()):
        names = [name for name in next(iter(seeds.values())) if name != CLEAN]
        for shift in names:
            row: dict[str, Any] = {"model": model, "seeds": len(seeds), "shift": shift}
            for severity in (0, *robustness.SEVERITIES):
                values = [table[CLEAN if severity == 0 else shift][str(severity)] for table in seeds.values()]
                row[f"dsc_{severity}"] = round(float(np.mean([list(cases.values()) for cases in values])), 3)
            rows.append(row)
    known = [facts["best_truncated"] for facts in kept["facts"].values() if "best_truncated" in facts]
    if rows and known:
        best = {
            f"dsc_{s}": round(float(np.mean([one[str(s)] for one in known])), 3)
            for s in robustness.SEVERITIES
        }
        rows.append(
            {
                "model": "a right mask of what is left",
                "seeds": "",
                "shift": "truncation",
                "dsc_0": 1.0,
                **best,
            }
        )
    return rows


def strata(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Return, for each model, the DSC of each test patient by training on his own kernel, and on the other."""
    rows: list[dict[str, Any]] = []
    models = [set(models) for models in kept["strata"].values()]
    for model in sorted(set.intersection(*models)) if len(models) == len(robustness.KERNELS) else []:
        both = [kept["strata"][kernel][model] for kernel in robustness.KERNELS]
        seeds = sorted(set(both[0]) & set(both[1]))
        own: dict[str, float] = {}
        other: dict[str, float] = {}
        for case in both[0][seeds[0]] if seeds else []:
            for number, table in enumerate(both):
                side = own if kept["facts"][case]["kernel"] == robustness.KERNELS[number] else other
                side[case] = float(np.mean([table[seed][case] for seed in seeds]))
        if seeds:
            rows.append({"model": model, "seeds": len(seeds), **difference(own, other)})
    corrected(rows)
    return rows


AGAINST = {"": "itself before", "twin": "the one of the other corpus", "random": "random weights"}


def reused(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Return, for each model, the CKA of each block after fine-tuning with itself before, and with networks that it does
    not come from, averaged over seeds."""
    rows = []
    for model in sorted(kept["cka"]):
        for control, text in AGAINST.items():
            if len(found := diagonals(kept, model, control)):
                rows.append(
                    {
                        "model": model,
                        "against": text,
                        "seeds": len(found),
                        "blocks": found.mean(0).round(3).tolist(),
                    }
                )
    return rows


def diagonals(kept: dict[str, Any], model: str, control: str = "", *, both: bool = False) -> np.ndarray:
    """Return `(seeds, blocks)` of CKA with itself before fine-tuning, or with a network that it does not come from.
    `both`: of the seeds that have both, itself and random weights."""
    own, strange = (kept[part].get(model, {}) for part in ("cka", "controls"))
    if both:
        own = {seed: found for seed, found in own.items() if "random" in strange.get(seed, {})}
    seeds = (
        sorted(own) if both or not control else sorted(seed for seed in strange if control in strange[seed])
    )
    return np.array([strange[seed][control] if control else np.diag(np.array(own[seed])) for seed in seeds])


def reuse_claims(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the paper says of its heat maps, with each seed's number, as it is and above that of random
    weights; sure where all seeds say the same."""
    rows = []
    ends = {"early": slice(None, 3), "late": slice(-3, None)}
    late = [(text, models, (ends["late"], ends["late"])) for text, models in REUSED]
    one = "swin-wild-smit"
    whole = [
        *late,
        ("SMIT reuses its early blocks more than its late ones, Swin wild", (one, one), tuple(ends.values())),
    ]
    for text, models, parts in whole:
        row: dict[str, Any] = {"claim": text, "of": list(models) if models[0] != models[1] else list(ends)}
        for above in ("", "above_random_"):
            found = []
            for model, part in zip(models, parts, strict=True):
                own, chance = (
                    diagonals(kept, model, control, both=bool(above)) for control in ("", "random")
                )
                found.append((own - chance if above else own)[:, part].mean(1) if len(own) else np.zeros(0))
            row |= {f"{above}{key}": value for key, value in _described(*found).items()}
        rows.append(row)
    return rows


def _described(one: np.ndarray, two: np.ndarray) -> dict[str, Any]:
    row: dict[str, Any] = {"first": one.round(3).tolist(), "second": two.round(3).tolist()}
    if not len(one) or not len(two):
        return {**row, "verdict": "not measured"}
    if min(len(one), len(two)) < SEEDS:
        return {**row, "verdict": "cannot tell"}
    if one.min() > two.max():
        return {**row, "verdict": "agrees"}
    return {**row, "verdict": "disagrees" if one.max() < two.min() else "cannot tell"}


def costs(trained: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the steps until the validation DSC of a model first reaches 95% of the last one of its encoder from
    scratch, and by how much that is sooner than from scratch, by seed; None: never. The paper's claim holds
    where every seed saves steps."""
    rows = []
    for model, paper in SAVED.items():
        scratch = {row["seed"]: row for row in trained.get(f"{model.split('-')[0]}-scratch", [])}
        both: list[tuple[int | None, int | None]] = []
        for row in trained.get(model, []):
            twin = scratch.get(row["seed"])
            curves = (
                [[point for point in one["curve"] if len(point) == 3] for one in (row, twin)]
                if twin
                else [[]]
            )
            if all(curves):
                goal = trials.SHARE * curves[1][-1][2]
                first = [next((step for step, _, dsc in curve if dsc >= goal), None) for curve in curves]
                both.append((first[0], first[1]))
        if both:
            saved = [round(1 - mine / theirs, 2) if mine and theirs else None for mine, theirs in both]
            rows.append(
                {
                    "model": model,
                    "paper": paper,
                    "seeds": len(both),
                    "steps": [mine for mine, _ in both],
                    "from_scratch": [theirs for _, theirs in both],
                    "saved": saved,
                    "verdict": cheaper(saved),
                }
            )
    return rows


def cheaper(saved: list[float | None]) -> str:
    """Return whether a start saves steps, by what it saves with each seed."""
    known = [share for share in saved if share is not None]
    if len(known) < max(SEEDS, len(saved)):
        return "cannot tell"
    return "agrees" if min(known) > 0 else "disagrees" if max(known) <= 0 else "cannot tell"


def by_volume(kept: dict[str, Any], trained: dict[str, Any], draws: int = 2000) -> list[dict[str, Any]]:
    """Return how much of the DSC a tumour's volume explains (R2 of DSC against the volume), and by how much less
    than from scratch, with a bootstrap interval over patients."""
    rows: list[dict[str, Any]] = []
    for model, paper in EXPLAINED.items():
        scratch = f"{model.split('-')[0]}-scratch"
        if not trained.get(model) or not trained.get(scratch) or len(kept["facts"]) < FEWEST:
            continue
        found, other = (trials.of_cases(trained[name]) for name in (model, scratch))
        table = np.array([[kept["facts"][case]["volume_ml"], found[case], other[case]] for case in found])
        row = {
            "model": model,
            "seeds": len(trained[model]),
            "paper_r2": paper,
            "r2": round(explained(table[:, :2]), 3),
            "less_than_scratch": "",
            "verdict": "",
        }
        if model != scratch:
            rng = np.random.default_rng(0)
            drawn = [table[rng.integers(len(table), size=len(table))] for _ in range(draws)]
            less = [
                explained(one[:, [0, 2]]) - explained(one[:, :2])
                for one in drawn
                if len(np.unique(one[:, 0])) > 2
            ]
            low, high = (round(float(np.quantile(less, q)), 3) for q in (0.025, 0.975))
            row["less_than_scratch"] = [low, high]
            row["verdict"] = "agrees" if low > 0 else "disagrees" if high < 0 else "cannot tell"
        rows.append(row)
    return rows


def explained(pairs: np.ndarray) -> float:
    """Return R2 of two columns."""
    return float(np.corrcoef(pairs[:, 0], pairs[:, 1])[0, 1] ** 2)


def nodules(trained: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results on lung nodules, for each published encoder in the wild: DSC against the same encoder from scratch,
    trained alike."""
    rows: list[dict[str, Any]] = []
    for label, found in trained.items():
        if scratch := trials.scratch_of(label, trained):
            sides = trials.same_seeds(found, trained[scratch])
            rows.append(
                {
                    "model": label,
                    "against": scratch,
                    "seeds": len(sides[0]),
                    "expected": 1,
                    **difference(*map(trials.of_cases, sides)),
                }
            )
    corrected(rows)
    return [{**{k: v for k, v in row.items() if k != "expected"}, "verdict": verdict(row)} for row in rows]


def early_over_late(kept: dict[str, Any]) -> dict[str, Any]:
    """Return in how many models the first blocks change less than the last ones, and how alike both are to
    strangers, on average over the models that have both strangers."""
    found = [diagonals(kept, model).mean(0) for model, seeds in kept["cka"].items() if seeds]
    result: dict[str, Any] = {
        "models": len(found),
        "early_change_less": sum(bool(d[:3].mean() > d[-3:].mean()) for d in found),
    }
    scratch = [
        diagonals(kept, model).mean(0) for model, seeds in kept["cka"].items() if seeds and "scratch" in model
    ]
    result["scratch_too"] = bool(scratch) and all(d[:3].mean() > d[-3:].mean() for d in scratch)
    whole = [
        model
        for model in sorted(kept["cka"])
        if all(len(diagonals(kept, model, control)) for control in AGAINST)
    ]
    for control in AGAINST if whole else []:
        known = [diagonals(kept, model, control) for model in whole]
        result[control or "own"] = (
            np.mean([(d[:, :3].mean(), d[:, -3:].mean()) for d in known], 0).round(2).tolist()
        )
    return result | {"with_controls": len(whole)}


def study(
    kept: dict[str, Any], trained: dict[str, Any], limits: str = OURS, *, lungs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return what follows from the results of `training.experiments.robustness` and of the trainings. `limits`:
    beside the general; `lungs`: trainings of `training.experiments.lung_nodules`."""
    crops = kept["crops"]
    limits = (
        GENERAL.format(
            cases=len(kept["facts"]) or "no",
            size=robustness.SIZE,
            apart=(f"{crops['apart']} of {crops['all']}" if crops else "none yet"),
        )
        + limits
    )
    return {
        "command": "python -m training.experiments.study",
        "limits": limits,
        "claims": judged(CLAIMS, kept),
        "nodules": nodules(lungs or {}),
        "lost": lost(kept),
        "pretexts": pretexts(kept),
        "shifts": losses(kept),
        "strata": strata(kept),
        "reuse": reuse_claims(kept),
        "early_late": early_over_late(kept),
        "cka": reused(kept),
        "costs": costs(trained),
        "volume": by_volume(kept, trained),
    }


TABLES = {
    "nodules": "The other task, nearer to the paper's: lung nodules, wild against scratch (cubes of 51 mm; DSC)",
    "lost": "Robustness itself: DSC that the first loses less than the second under a shift (mean over severities)",
    "pretexts": "SMIT against single pretexts: DSC, clean and as a mean over the severities of each shift",
    "shifts": "DSC under each shift, by severity",
    "strata": "Test patients by models that were trained on their own kernel, and on the other",
    "reuse": "What the paper says of feature reuse (CKA before and after fine-tuning, each seed; and above random weights)",
    "cka": "CKA of each block of a fine-tuned encoder",
    "costs": "Fine-tuning steps until 95% of what training from scratch reaches on validation crops (the encoder's learning "
    "rate is a third of that from scratch)",
    "volume": "DSC against the tumour's volume",
}
"""Parts of the study, and their titles."""


def page(found: dict[str, Any], pictures: list[Path] | None = None) -> str:
    """Return `STUDY.md` from `STUDY.json`."""
    lines = [
        "# Does pretraining in the wild make a segmenter robust? The paper's claims on our data\n",
        found["limits"],
        f"Made by `{found['command']}` from what `python -m training.experiments.sarcoma` and "
        f"`{robustness.COMMAND}` measured. Differences are means over patients with 95% bootstrap intervals; p is of a "
        "paired Wilcoxon test, corrected by Holm over the table.\n",
        markdown(
            ["claim", "the paper", "here: DSC, difference (95% interval)", "patients, seeds", "p", "verdict"],
            [[row["claim"], row["paper"], *_ours(row), row["verdict"]] for row in found["claims"]],
        ).rstrip("\n"),
    ]
    for part, title in TABLES.items():
        rows = [{key: value for key, value in row.items() if key != "p"} for row in found[part]]
        lines.append(f"\n## {title}\n")
        if not rows:
            lines.append("Not measured yet.")
            continue
        cells = [[_cell(value) for value in row.values()] for row in rows]
        lines.append(markdown(list(rows[0]), cells).rstrip("\n"))
        if part == "reuse":
            lines += _reuse(found["early_late"])
    if pictures:
        lines.append(
            "\n## Pictures\n\nCurves: mean DSC; bands: 95% interval of its change from the clean scans, over patients.\n"
        )
        lines += [
            f"![{path.stem.partition('STUDY_')[2].replace('_', ', ')}]({path.name})" for path in pictures
        ]
    return "\n".join(lines) + "\n"


def _reuse(count: dict[str, Any]) -> list[str]:
    """Return what the table of feature reuse shows, in sentences."""
    lines = []
    lines.append(
        f"\nIn {count['early_change_less']} of {count['models']} models the first three blocks change less in "
        "fine-tuning than the last three"
        + (", in those from scratch too: that is no mark of a pretext." if count["scratch_too"] else ".")
    )
    if count["with_controls"]:
        own, twin, random = (count[key] for key in ("own", "twin", "random"))
        lines.append(
            f"CKA in the first and in the last three blocks, the mean of {count['with_controls']} models: with itself "
            f"before {own[0]:.2f} and {own[1]:.2f}, with the model of the other corpus {twin[0]:.2f} and {twin[1]:.2f}, "
            f"with random weights {random[0]:.2f} and {random[1]:.2f}. What a model has in common with networks that it "
            "does not come from was not reused."
        )
    return lines


def _ours(row: dict[str, Any]) -> list[str]:
    """Return our cells of a claim: difference with its interval, numbers, p."""
    if "n" not in row:
        return ["", "", ""]
    means, interval = row["means"], f"({row['low']:+.3f} to {row['high']:+.3f})"
    difference = f"{means[0]:.3f} against {means[1]:.3f}: {row['difference']:+.3f} {interval}"
    return [difference, f"{row['n']}, {row['seeds']}", _p(row)]


def _p(row: dict[str, Any]) -> str:
    return "-" if row["p_holm"] is None else f"{row['p_holm']:.3f}"


def _cell(value: Any) -> str:
    return "-" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def draw_pictures(kept: dict[str, Any], trained: dict[str, Any], stem: Path) -> list[Path]:
    """Draw DSC against severity for each encoder, with the interval of its change from the clean scans over
    patients (that of the DSC itself, patients being so different, would hide everything); and CKA before and
    after fine-tuning."""
    made = []
    for encoder in ("swin", "vit"):
        panels: dict[str, dict[str, Line]] = {}
        for model in (name.format(encoder) for name in SHOWN):
            seeds = list(kept["shifts"].get(model, {}).values())
            clean = scores(model, CLEAN, kept, common(kept, model))
            for shift in [name for name in seeds[0] if name != CLEAN] if seeds else []:
                line: Line = []
                for severity in (0, *robustness.SEVERITIES):
                    tables = [table[CLEAN if severity == 0 else shift][str(severity)] for table in seeds]
                    rows = [
                        {"patient": case, "change": float(np.mean([t[case] for t in tables])) - clean[case]}
                        for case in tables[0]
                    ]
                    low, high = interval(rows, "change")
                    mean = float(np.mean([row["change"] for row in rows]))
                    level = float(np.mean(list(clean.values())))
                    line.append((severity, level + mean, level + low, level + high))
                panels.setdefault(shift, {})[model] = line
        if panels and trials.BLIND in trained:  # what the middle of the scan alone is worth
            level = float(np.mean(list(trials.of_cases(trained[trials.BLIND]).values())))
            for lines in panels.values():
                lines["ellipsoid, no image"] = [
                    (severity, level, level, level) for severity in (0, *robustness.SEVERITIES)
                ]
        if panels:
            made.append(Path(f"{stem}_curves_{encoder}.png"))
            write_whole(made[-1], lambda part, panels=panels: draw(panels, part, whole=False))
        if matrices := list(kept["cka"].get(model := SHOWN[0].format(encoder), {}).values()):
            made.append(Path(f"{stem}_cka_{encoder}.png"))
            crops = kept["crops"]
            Similarity(
                np.mean(matrices, 0),
                crops.get("all", robustness.CROPS),
                (model, "the same, fine-tuned"),
                robustness.SIZE,
                crops.get("apart", 0),
            ).picture(made[-1])
    return sorted(made)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="CSV of other labelled scans, as for training.experiments.robustness"
    )
    args = parser.parse_args()
    path = robustness.results_of(args.data)
    stem, results, limits = STEM, sarcoma.RESULTS, OURS
    if args.data is not None:
        stem, results = args.data.with_suffix(".STUDY"), robustness.trainings_of(args.data)
        limits = f"- The test cases are those of {args.data.name}.\n"
    kept, trained = robustness.results(path), trials.read(results)["models"]
    lungs = trials.read(lung_nodules.RESULTS)["models"] if args.data is None else None
    found = study(kept, trained, limits, lungs=lungs)
    text = page(found, draw_pictures(kept, trained, stem))
    write_whole(Path(f"{stem}.json"), json.dumps(found, indent=1) + "\n")
    write_whole(Path(f"{stem}.md"), text)
    print(text)


if __name__ == "__main__":
    main()
