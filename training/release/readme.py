"""Write what was measured on lung tumours into README and model table: `python -m training.release.readme`.

The rows of README's table of models and the sentences below it follow from `experiments/results/lung.json`, and so does
`GAINS` in `ctssl/zoo.py`; what README says of the study follows from `model_cards/STUDY.json`.
"""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.files.atomic import write_whole
from ctssl.files.text import markdown
from ctssl.zoo import MODELS, USES
from training.experiments import lung, trials
from training.experiments.study.claims import CONVOLUTIONAL
from training.experiments.study.tables import STEM

ROOT = Path(__file__).parents[2]
SCRATCH = {"vit-scratch": "ViT from scratch", "swin-scratch": "Swin from scratch"}
LABELS = ", 50 cases"
FEWEST = 2  # trainings behind a figure


def main() -> None:
    models = trials.read(lung.EXPERIMENT.results)["models"]
    gains = gains_of(models)
    path = ROOT / "ctssl" / "zoo.py"
    values = "".join(f'\n    "{name}": {gain["difference"]:.3f},' for name, gain in gains.items()) + "\n"
    write_whole(path, re.sub(r"GAINS = \{[^}]*\}", f"GAINS = {{{values}}}", path.read_text()))
    path = ROOT / "README.md"
    head, rest = path.read_text().split("| model | parameters |", 1)
    picture = rest[rest.index("![DSC on lung tumours") :]
    text = f"{head}{table(models, gains)}\n{sentences(models)}\n{picture}"
    before, _, rest = text.partition("<!-- study -->\n")
    told = study_sentences(json.loads(STEM.with_suffix(".json").read_text()))
    write_whole(path, f"{before}<!-- study -->\n{told}{rest[rest.index('<!-- end -->') :]}")


def gains_of(models: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return for each model the DSC that it gains over its twin from scratch, the largest first."""
    found = {}
    for name in USES:
        twin = models.get(f"{name.split('-')[0]}-scratch{LABELS}", [])
        one, two = trials.same_seeds(models.get(name + LABELS, []), twin)
        if len(one) >= FEWEST:
            found[name] = trials.gained(trials.of_cases(one), trials.of_cases(two))
    return dict(sorted(found.items(), key=lambda item: -item[1]["difference"]))


def mean(rows: list[dict[str, Any]]) -> str:
    return f"{np.mean(list(trials.of_cases(rows).values())):.3f}"


def table(models: dict[str, list[dict[str, Any]]], gains: dict[str, dict[str, float]]) -> str:
    """Return README's table of models: those with a gain first."""
    rows = []
    for name in [*gains, *(name for name in USES if name not in gains)]:
        spec, gain = MODELS[name], gains.get(name)
        told = trials.told(gain) if gain else ""
        dsc = mean(models[name + LABELS]) if gain else ""
        licence = spec.licence.replace("-", " ")
        rows.append([f"`{name}`", f"{spec.parameters / 1e6:.1f} M", USES[name], dsc, told, licence])
    for name, text in SCRATCH.items():
        scratch = models.get(name + LABELS, [])
        if len(scratch) >= FEWEST:
            rows.append([text, "", "comparison", mean(scratch), "", ""])
    header = ["model", "parameters", "take it for", "lung tumour DSC", "against scratch", "licence"]
    return markdown(header, rows)


def sentences(models: dict[str, list[dict[str, Any]]]) -> str:
    """Return what README says below its table."""
    name = "vit-wild-lesions"
    ten = [models[f"{label}, 10 cases"] for label in (name, "vit-scratch")]
    counts = sorted({len(models[model + LABELS]) for model in gains_of(models)})
    trainings = " or ".join(map(str, counts))
    mirrored = models.get(f"{name}{lung.NO_LABELS}, mirrored")
    also = f" ({mean(mirrored)} with `--tta`)" if mirrored else ""
    text = f"""Figures are the mean DSC on 98 patients of one collection (NSCLC-Radiogenomics) after 500 steps on 50
    labelled patients of another (NSCLC-Radiomics), {trainings} trainings each, with 95% intervals over
    patients (`python -m training.experiments.lung --show`). With ten labelled patients it is {mean(ten[0])} against
    {mean(ten[1])} from scratch. {convolutional(models)} **Without any label** `{name}` has a DSC of
    {mean(models[name + lung.NO_LABELS])}{also}: it was taught to segment synthetic lesions pasted into unlabelled scans.
    `ctssl list` shows all models, `model_cards/RESULTS.md` all results."""
    return _filled(text)


def convolutional(models: dict[str, list[dict[str, Any]]]) -> str:
    """Return what README says of a convolutional network without pretraining: the strongest comparison."""
    fifty, ten = (models[f"dynunet-8, {count} cases, 1500 steps"] for count in (50, 10))
    trainings = len(fifty) + len(ten)
    return (
        f"A small nnU-Net (`dynunet-8`) from scratch has {mean(fifty)} and, with ten, {mean(ten)} after 1,500 steps ({trainings} "
        "trainings)."
    )


def study_sentences(found: dict[str, Any]) -> str:
    """Return what README says of the study."""
    rows = {row["start"]: row["clean"] for row in found["starts"]}
    claims = [(row["short"], row["verdict"]) for row in found["abstract"] if "short" in row]
    told = [f"{claim} ({verdict})" for claim, verdict in claims if verdict != "cannot tell"]
    own, scratch = (
        [f"{rows[name + more]:.2f}" for more in ("", ", 3000 steps")]
        for name in ("vit-wild-lesions", "vit-scratch")
    )
    text = f"""On {found["patients"]} of the paper's public patients, `vit-wild-lesions` has a DSC of {own[0]} after 1,000 steps
    on 150 of another collection and {own[1]} after 3,000; a ViT from scratch {scratch[0]} and {scratch[1]}, a small nnU-Net
    {rows[CONVOLUTIONAL]:.2f} after 3,000, so with many labels little is left to gain.
    The abstract's claims, over three pretext tasks: {"; ".join(told)}; {len(claims) - len(told)} cannot be told from chance."""
    return _filled(text)


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 130, break_long_words=False, break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    main()
