"""The tables of the study: `python -m training.experiments.study` writes `model_cards/STUDY.json`, `STUDY.md` and its pictures.

Everything follows from `results/robustness.jsonl` and `results/radiogenomics.json` (volume and density of the tumours), which
`python -m training.experiments.robustness` writes. Each claim is a row: the paper's figures, ours (mean difference over the
test patients, each side averaged over all of its trainings; 95% bootstrap interval over patients; how far it may be off for want
of patients and trainings, with the p that follows, corrected by Holm over all claims), and whether both agree.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from ctssl.files.atomic import write_whole
from ctssl.shifts import SHIFTS
from training.data.corpora import lung_split
from training.experiments import kernels, lung, trials
from training.experiments.study import page
from training.experiments.study.claims import ABSTRACT, CONVOLUTIONAL, TABLES, Claim, over
from training.experiments.study.contestants import CONTESTANTS, twin_of
from training.experiments.study.measured import LOST, SHIFTED, Measured, correct, verdict
from training.experiments.study.patients import CLEAN, CUBE, FACTS, SEVERITIES, UNTRUE

STEM = Path(__file__).parent.parent.parent.parent / "model_cards" / "STUDY"
EARLY, LATE = slice(None, 3), slice(-3, None)  # blocks
SMALL, LARGE = 4.0, 24.0  # ml
SEEDS = 3  # of every contestant
FEW = (1, 5, 10, 25, 50)  # labelled patients
SOLID = -300.0  # mean HU inside the mask (which holds air too), above which a tumour counts as solid


def judged(claims: list[Claim], kept: Measured) -> list[dict[str, Any]]:
    """Return a row for each claim, with its verdict; Holm over those that were measured."""
    rows = []
    for claim in claims:
        terms = [(round(factor, 4), name) for factor, name in claim.terms]
        size = None if claim.size is None else round(claim.size, 3)
        facts = {
            "claim": claim.text,
            "paper": claim.paper,
            "terms": terms,
            "place": claim.place,
            "size": size,
        }
        facts |= {"short": claim.short} if claim.short else {}
        rows.append(
            {**facts, "expected": claim.expected, **(kept.difference(claim.terms, claim.place) or {})}
        )
    for row in correct(rows):
        row["verdict"] = verdict(row)
    return rows


def starts(kept: Measured) -> list[dict[str, Any]]:
    """Return every contestant: DSC of the boxes, the whole cubes, and under all shifts; and its gain over scratch."""
    rows = []
    for name in CONTESTANTS:
        if not (seeds := kept.seeds(name)):
            continue
        row: dict[str, Any] = {"start": name, "seeds": len(seeds)}
        for place in (CLEAN, CUBE, SHIFTED):
            row[place] = round(float(kept.scores(name, place, seeds).mean()), 3)
        scratch = trials.scratch_of(name, CONTESTANTS)
        if scratch and (found := kept.difference(over(name, scratch))):
            row |= {"against": scratch, **found}
        rows.append(row)
    return correct(rows)


def corpora(kept: Measured) -> list[dict[str, Any]]:
    """Compare wild and self for each encoder and pretext that was trained alike on both, clean and under all shifts."""
    rows = []
    for encoder in ("vit", "swin"):
        for pretext in ("smit", "mim", "contrastive"):
            terms = over(f"{encoder}-wild-{pretext}", f"{encoder}-self-{pretext}")
            for place in (CLEAN, SHIFTED, LOST):
                if found := kept.difference(terms, place):
                    rows.append({"encoder": encoder, "pretext": pretext, "place": place, **found})
    return correct(rows)


def augmentation(kept: Measured) -> list[dict[str, Any]]:
    """Return the gain of some starts from shifted copies of the training scans, clean and under all shifts."""
    rows = []
    for encoder in ("vit", "swin"):
        for start in ("scratch", "wild-smit", "wild-lesions"):
            name = f"{encoder}-{start}"
            for place in (CLEAN, SHIFTED, LOST):
                if found := kept.difference(over(f"{name} + shifts", name), place):
                    rows.append({"start": name, "place": place, **found})
    return correct(rows)


def lost(kept: Measured) -> list[dict[str, Any]]:
    """Return the change of DSC under shifts of each pretrained start, less that of its encoder from scratch (below 0: worse)."""
    rows = []
    for name in CONTESTANTS:
        scratch = trials.scratch_of(name, CONTESTANTS)
        plain = not CONTESTANTS[name].changes
        if plain and scratch and (found := kept.difference(over(name, scratch), LOST)):
            rows.append({"start": name, **found})
    return correct(rows)


def convolutional(kept: Measured) -> list[dict[str, Any]]:
    """Compare the best starts with a convolutional network from scratch: in boxes, whole cubes, and under all shifts."""
    rows = []
    for encoder in ("vit", "swin"):
        for name in (f"{encoder}-wild-lesions, 3000 steps", f"{encoder}-scratch, 3000 steps"):
            for place in (CLEAN, CUBE, SHIFTED):
                if found := kept.difference(over(name, CONVOLUTIONAL), place):
                    rows.append({"start": name, "place": place, **found})
    return correct(rows)


def under_shifts(kept: Measured) -> list[dict[str, Any]]:
    """Return the mean DSC of each contestant of `page.SHOWN` under each shift, clean and at each severity."""
    rows = []
    for name in page.SHOWN:
        if not (seeds := kept.seeds(name)):
            continue
        for shift in (one for one in SHIFTS if one not in UNTRUE):
            row: dict[str, Any] = {"start": name, "shift": shift}
            row["clean"] = round(float(kept.scores(name, CLEAN, seeds).mean()), 3)
            for severity in SEVERITIES:
                row[f"severity {severity}"] = round(
                    float(kept.scores(name, f"{shift} {severity}", seeds).mean()), 3
                )
            rows.append(row)
    return rows


def strata(kept: Measured, facts: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Return DSC and gain over scratch by the tumour's volume and density."""
    volume, density = (
        np.array([facts[case][key] for case in kept.cases]) for key in ("volume_ml", "mean_hu")
    )
    parts = {
        f"below {SMALL:g} ml": volume < SMALL,
        f"{SMALL:g} to {LARGE:g} ml": (volume >= SMALL) & (volume <= LARGE),
        f"above {LARGE:g} ml": volume > LARGE,
        f"solid (mean above {SOLID:g} HU)": density > SOLID,
        "part-solid or ground glass": density <= SOLID,
    }
    rows = []
    for part, inside in parts.items():
        for name in page.SHOWN:
            scratch = trials.scratch_of(name, CONTESTANTS)
            if scratch and (found := kept.difference(over(name, scratch), cases=inside)):
                rows.append({"tumours": part, "start": name, "against": scratch, **found})
    return correct(rows)


def reuse(kept: Measured) -> list[dict[str, Any]]:
    """Return the CKA of the first and the last three blocks with the same encoder before fine-tuning, with that of the other
    corpus, and with random weights, averaged over seeds."""
    rows = []
    for name, trained in kept.rows.items():
        found = [row["cka"] for row in trained.values() if "cka" in row]
        if not found or name not in CONTESTANTS or CONTESTANTS[name].changes:
            continue
        row: dict[str, Any] = {"start": name, "seeds": len(found)}
        for control in ("before", "twin", "random"):
            known = [one[control] for one in found if control in one]
            for part, blocks in (("early", EARLY), ("late", LATE)):
                row[f"{part}, {control}"] = (
                    round(float(np.mean([one[blocks] for one in known])), 3) if known else None
                )
        rows.append(row)
    return rows


def reuse_claims(kept: Measured) -> list[dict[str, Any]]:
    """Return what the abstract says of feature reuse, as counts of encoders (means over seeds), with the p of a sign test. Starts
    with `lesions` are left out: theirs were not trained alike on both corpora."""
    own = {
        name: np.mean([row["cka"]["before"] for row in trained.values()], 0)
        for name, trained in kept.rows.items()
        if all("cka" in row for row in trained.values())
        and not CONTESTANTS[name].changes
        and not name.endswith("lesions")
    }
    wild = {name: cka for name, cka in own.items() if twin_of(name) and "-wild-" in name}
    pairs = [(cka, own[twin]) for name, cka in wild.items() if (twin := twin_of(name)) in own]
    early = {name: bool(cka[EARLY].mean() > cka[LATE].mean()) for name, cka in own.items()}
    rows = [
        _counted(
            "Wild-pretrained models reuse their lower layers more than their last ones",
            [early[name] for name in wild],
        ),
        _counted(
            "... and reuse the lower layers more than self-pretrained ones",
            [one[EARLY].mean() > two[EARLY].mean() for one, two in pairs],
        ),
        _counted(
            "... and change more than those close to the output",
            [one[LATE].mean() < two[LATE].mean() for one, two in pairs],
        ),
    ]
    others = [found for name, found in early.items() if name not in wild]
    if others and all(early.values()):
        rows[0]["verdict"] = f"so do all {len(others)} others (self, scratch): no mark of it"
    return rows


def _counted(claim: str, found: list[Any]) -> dict[str, Any]:
    yes, n = int(sum(found)), len(found)
    row: dict[str, Any] = {"claim": claim, "encoders": n, "holds in": yes}
    p = float(binomtest(yes, n).pvalue) if n else 1.0
    said = "agrees" if yes > n / 2 else "disagrees"
    return row | {"p": float(f"{p:.2g}"), "verdict": said if p < 0.05 else "cannot tell"}


def costs(kept: Measured) -> list[dict[str, Any]]:
    """Return the steps until the validation DSC reaches 95% of the last one of the same training from scratch, by seed."""
    rows = []
    for name in CONTESTANTS:
        scratch = trials.scratch_of(name, CONTESTANTS)
        if not scratch:
            continue
        shared = kept.seeds(name, scratch)
        steps, theirs = [], []
        for seed in shared:
            curve, other = (kept.rows[one][seed]["curve"] for one in (name, scratch))
            goal = trials.SHARE * other[-1][2]
            steps.append(next((point[0] for point in curve if point[2] >= goal), None))
            theirs.append(next(point[0] for point in other if point[2] >= goal))
        if shared:
            rows.append({"start": name, "against": scratch, "steps": steps, "from scratch": theirs})
    return rows


def study(kept: Measured, facts: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return everything that follows from what was measured."""
    known = [row for trained in kept.rows.values() for row in trained.values()]
    claims = judged([*ABSTRACT, *TABLES], kept)
    return {
        "command": "python -m training.experiments.study",
        "patients": len(kept.cases),
        "trainings": len(known),
        "devices": sorted({row["device"] for row in known}),
        "noise": {encoder: round(kept.noise(encoder, CLEAN)[0], 4) for encoder in ("vit", "swin")},
        "seed_effect": {encoder: kept.seed_effect(encoder) for encoder in ("vit", "swin")},
        "abstract": claims[: len(ABSTRACT)],
        "reuse_claims": reuse_claims(kept),
        "claims": claims[len(ABSTRACT) :],
        "starts": starts(kept),
        "corpora": corpora(kept),
        "augmentation": augmentation(kept),
        "convolutional": convolutional(kept),
        "lost": lost(kept),
        "shifts": under_shifts(kept),
        "strata": strata(kept, facts),
        "reuse": reuse(kept),
        "costs": costs(kept),
        "labels": labels(trials.read(lung.EXPERIMENT.results)["models"]),
        "few_labels": few_labels(trials.read(lung.EXPERIMENT.results)["models"]),
        "kernels": kernels.table_rows(trials.read(kernels.RESULTS)["models"]),
        "missing": missing(kept),
    }


def labels(models: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the DSC with few labelled patients, and with none, of the trainings of `training.experiments.lung`."""
    found: list[tuple[str, int, str]] = []  # start, labelled patients, and what its trainings are called
    for name in (
        "vit-scratch",
        "vit-wild-contrastive",
        "vit-wild-lesions",
        "swin-scratch",
        "swin-wild-lesions",
    ):
        found += [(name, 0, name + lung.NO_LABELS)]
        found += [(name, count, f"{name}, {count} cases") for count in FEW]
        found += [(name, len(lung_split()["train"]), name)]
    found += [("dynunet-8, 1500 steps", count, f"dynunet-8, {count} cases, 1500 steps") for count in FEW]
    return [
        {
            "start": start,
            "labelled patients": count,
            "trainings": len(models[label]),
            "DSC": round(float(np.mean(list(trials.of_cases(models[label]).values()))), 3),
        }
        for start, count, label in found
        if label in models
    ]


def few_labels(models: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Compare `vit-wild-lesions` with a convolutional network from scratch, on few labelled patients."""
    rows = []
    for mine, theirs in (
        (f"vit-wild-lesions{lung.NO_LABELS}", "dynunet-8, 50 cases, 1500 steps"),
        ("vit-wild-lesions, 10 cases", "dynunet-8, 10 cases, 1500 steps"),
        ("vit-wild-lesions, 50 cases", "dynunet-8, 50 cases, 1500 steps"),
        ("vit-wild-lesions, 50 cases, 1500 steps", "dynunet-8, 50 cases, 1500 steps"),
    ):
        if mine in models and theirs in models:
            gain = trials.gained(*(trials.of_cases(models[label]) for label in (mine, theirs)))
            rows.append({"pretrained": mine, "from scratch": theirs, **gain})
    return correct(rows)


def missing(kept: Measured) -> list[str]:
    """Return which seeds of which contestants were not trained, the most first."""
    found: dict[tuple[int, ...], list[str]] = {}
    for name in CONTESTANTS:
        seeds = tuple(seed for seed in range(SEEDS) if seed not in kept.rows.get(name, {}))
        if seeds:
            found.setdefault(seeds, []).append(name)
    order = sorted(found, key=lambda seeds: (-len(seeds), seeds))
    return [
        f"seed {', '.join(map(str, seeds))} of {', '.join(f'`{name}`' for name in found[seeds])}"
        for seeds in order
    ]


def main() -> None:
    kept = Measured.read()
    found = study(kept, json.loads(FACTS.read_text()))
    pictures = page.draw_pictures(kept, found, STEM)
    write_whole(Path(f"{STEM}.json"), json.dumps(found, indent=1) + "\n")
    text = page.page(found, pictures)
    write_whole(Path(f"{STEM}.md"), text)
    print(text)


if __name__ == "__main__":
    main()
