"""Write the card of an encoder from its files. Every number comes from one of them."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from ctssl.encoders import ENCODERS
from ctssl.files.text import markdown
from ctssl.hub.card import Card
from training.pretext import TASKS

CARDS = Path(__file__).parents[2] / "model_cards"
RESULTS = Path(__file__).parents[1] / "experiments" / "results"
CORPORA = {
    "wild": "in the wild: public CTs of many collections, scanners and body parts, not curated for any task",
    "self": "self: only the task's own scans, cubes of 92 mm around the lung tumours of 150 patients (NSCLC-Radiomics), without "
    "their labels",
    "wild-self": "in the wild (public CTs of many collections, scanners and body parts), and then self: cubes of 92 mm around the "
    "lung tumours of 150 patients (NSCLC-Radiomics), without their labels",
    "sarcoma": "the training side of soft-tissue sarcomas (TCIA), without their labels",
}


LICENCES = {
    "public domain": "cc0-1.0",
    "MIT": "mit",
    "BSD": "bsd-3-clause",
    "Apache-2.0": "apache-2.0",
    "CC BY 3.0": "cc-by-3.0",
    "CC BY 4.0": "cc-by-4.0",
}
"""Licences from the most permissive to the strictest, with the Hub's name of each."""
NON_COMMERCIAL = {"CC BY-NC 3.0": "cc-by-nc-3.0"}
"""Stricter ones: their weights stay out of the package."""


def strictest(scans: list[dict]) -> str:
    """Return the Hub's name of the strictest licence of the scans, which also applies to the weights.

    Raises `ValueError` for a licence that does not allow publishing the weights.
    """
    hub = LICENCES | NON_COMMERCIAL
    order = list(hub)
    licences = set()
    for row in scans:
        known = [name for name in LICENCES if row["licence"].startswith(name)]
        if "NC" in row["licence"]:  # a mixture cannot be read
            known = [name for name in NON_COMMERCIAL if row["licence"] == name]
        if not known:
            raise ValueError(f"{row['id']}: the licence {row['licence']!r} does not allow publishing weights")
        licences.add("CC BY 4.0" if "4.0" in row["licence"] else known[-1])
    return hub[max(licences, key=order.index)]


def card(config: dict, history: dict) -> str:
    """Return `README.md` of a model folder, from its `config.json` and `training.json`."""
    name, run, curve = config["name"], history["run"], history["curve"]
    low, high = config["preprocess"]["window_hu"]
    spacing = config["preprocess"]["spacing_mm"]
    unseen = history["unseen"]
    counts = Counter((row["collection"] or row["source"], row["licence"]) for row in history["scans"])
    rows = [[c, str(n), licence] for (c, licence), n in sorted(counts.items())]
    scans = markdown(["scans from", "number", "licence"], rows)
    untrained = ", ".join(f"`{key}`" for key in config["untrained"]) or "none"
    architecture = ENCODERS[config["encoder"]].__name__
    taught = getattr(TASKS[run["task"]], "about", f"the pretext task `{run['task']}`")
    corpus = CORPORA.get(config["corpus"], f"on the scans of {config['corpus']}")
    whole = config["kind"] == "segmenter"
    code = f'encoder = ctssl.load("{name}")\nfeatures = encoder.embed("scan.nii.gz")  # ({width(config)},)'
    if whole:
        code += (
            f'\nmask = ctssl.load_segmenter("{name}").segment("scan.nii.gz")  # where it would put a lesion'
        )
    kept = f" Its head `{config['head']}`, pretrained by the same task, is kept beside it." if whole else ""
    return Card(
        title=name,
        front=front_matter(config, history),
        limits=f"""A small model for research: trained on {len(history["scans"])} scans with {trained_with(history["device"])}. It has seen no labels and knows no
disease. It is not a medical device and must not be used for diagnosis. Scans must be CT in HU; `ctssl` warns about those
that are not.{restriction(history["scans"])}""",
        about=f"""A 3D {architecture} encoder for CT with {config["parameters"] / 1e6:.2f} M parameters{" (with its head)" if whole else ""}, pretrained with
{taught}, {corpus}.{started(run)}{kept}""",
        code=code,
        sections=[
            (
                "",
                f"""**Input.** CT in Hounsfield units, one 3D scan. `encoder.preprocess` brings it to RAS+ axes and {spacing:g} mm isotropic
spacing and maps {low:g}..{high:g} HU to 0..1.

![Features of the phantom that the package makes](features.png)""",
            ),
            (
                "Training",
                f"""`{history["command"]}`: {run["steps"]} steps, {history["samples"]} samples in crops of {run["crop"]} voxels, AdamW, learning rate {run["lr"]:g},
{plural(round(history["hours"] * 60), "minute")} on {history["device"]} ({history["processes"]} process{"es" if history["processes"] > 1 else ""}). The loss went from {curve[0]["loss"]:.3f} (first {plural(max(1, run["steps"] // len(curve)), "step")}) to
{curve[-1]["loss"]:.3f} (last); on {unseen["crops"]} crops of scans that it has not seen ({where(unseen["corpus"])}) it is {unseen["loss"]:.3f}.
Parameters that this pretext does not reach and that are as initialised: {untrained}.

![Loss](loss.png)

{scans}
The weights take over the strictest of these licences, {strictest(history["scans"])}. Name the collections when you pass them on.""",
            ),
            ("What it is worth", results(name)),
        ],
    ).render()


def restriction(scans: list[dict]) -> str:
    """Return a sentence that forbids commercial use, where a licence does."""
    if strictest(scans) not in NON_COMMERCIAL.values():
        return ""
    return " **Not for commercial use**: so says the licence of the scans that it was pretrained on."


def trained_with(device: str) -> str:
    return "two CPU cores" if device == "cpu" else f"minutes of one {device}"


def front_matter(config: dict, history: dict) -> dict[str, Any]:
    """Return what the Hub reads: licence, tags, datasets, measured results."""
    from huggingface_hub import EvalResult

    rows = measured(config["name"])
    evaluations = []
    if rows:
        evaluations = [
            EvalResult(
                "image-segmentation",
                "soft-tissue-sarcoma",
                "Soft-tissue-Sarcoma (TCIA), 12 held-out cases",
                "dice",
                round(sum(rows) / len(rows), 4),
                metric_name="mean DSC after fine-tuning",
            )
        ]
    for task, value in probed(config["name"]).items():
        evaluations.append(
            EvalResult(
                "image-feature-extraction",
                task.replace("_", "-"),
                PROBED[task],
                "roc_auc",
                value,
                metric_name="mean AUROC of a linear probe of voxels, over patients",
            )
        )
    names = {
        re.sub(r"[^a-z0-9]+", "-", (row["collection"] or row["source"]).lower()).strip("-")
        for row in history["scans"]
    }
    return {
        "license": strictest(history["scans"]),
        "pipeline_tag": "image-feature-extraction",
        "tags": ["ct", "medical-imaging", "3d", "self-supervised", config["encoder"], config["pretext"]],
        "datasets": sorted(names),
        "eval_results": evaluations or None,
        "model_name": config["name"] if evaluations else None,
    }


PROBED = {
    "sarcoma": "Soft-tissue-Sarcoma (TCIA), thirds of 26 cases",
    "lung_nodules": "thirds of 94 nodules, LIDC origin inferred",
}


def probed(name: str) -> dict[str, float]:
    """Return the AUROC of the linear probe by task."""
    from ctssl.finetuning.probe_fits import by_patient

    return {
        task: round(float(by_patient(models[name], "linear", "auroc").mean()), 4)
        for task, models in kept("probe", "tasks")["tasks"].items()
        if name in models
    }


def measured(label: str) -> list[float]:
    """Return the mean DSC of each seed in the sarcoma experiment."""
    return [row["mean_dsc"] for row in kept("sarcoma", "models")["models"].get(label, [])]


def kept(experiment: str, part: str) -> dict:
    """Return the results of an experiment; its `part` is empty if it was not run."""
    path = RESULTS / f"{experiment}.json"
    return json.loads(path.read_text()) if path.exists() else {part: {}}


def where(corpus: str) -> str:
    """Return the name of the scans that a model was evaluated on without having seen them."""
    return (
        "`paired_kernels` of the data"
        if corpus == "paired_kernels"
        else f'the training side of the corpus "{corpus}"'
    )


def plural(number: int, noun: str) -> str:
    """Return a number and its noun.

    >>> plural(1, "minute"), plural(3, "minute")
    ('1 minute', '3 minutes')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def started(run: dict) -> str:
    """Return a sentence about the starting weights of a run; "" if there are none."""
    return (
        f" It started from `{run['init']}`, whose own scans and licence count too: see its card."
        if run["init"]
        else ""
    )


def width(config: dict) -> int:
    """Return the number of channels of an encoder's deepest map."""
    with torch.device("meta"):  # without its weights
        return ENCODERS[config["encoder"]](**config["encoder_args"]).channels[-1]


def results(name: str) -> str:
    """Return the results of the experiments with this model."""
    tuned = lung(name) + study(name) + segmentation(name)
    return (tuned or "Fine-tuning of this model has not been measured yet.\n") + probing(name)


def lung(name: str) -> str:
    """Return the results on lung tumours of another collection, in words and as a table; "" where there are none."""
    from training.experiments.trials import gained, in_order, of_cases, same_seeds, shown, told

    found = kept("lung", "models")
    models, twin, rows = found["models"], f"{name.split('-')[0]}-scratch", []
    for label in in_order(models):
        if not re.fullmatch(rf"{name}(, \d+ cases|, no labels|, no labels, mirrored)?", label):
            continue
        scores, scratch = of_cases(models[label]), models.get(label.replace(name, twin))
        gain = ""
        if scratch:
            one, two = same_seeds(models[label], scratch)
            gain = told(gained(of_cases(one), of_cases(two)))
        mean = sum(scores.values()) / len(scores)
        rows.append(
            [
                shown(label).removeprefix(name).strip(", ") or "all cases",
                f"{mean:.3f}",
                str(len(models[label])),
                gain,
            ]
        )
    if not rows:
        return ""
    table = markdown(["labelled", "mean DSC", "trainings", "against the same network from scratch"], rows)
    return f"""Lung tumours: fine-tuned for 500 steps on patients of NSCLC-Radiomics, judged on the 98 of NSCLC-Radiogenomics (64 mm boxes),
by `{found["command"]}`, with 95% intervals over patients.

{table}
"""


def study(name: str) -> str:
    """Return what the study of corpora measured with a model that was pretrained on the scans of its task ("self"); ""
    for any other: the study's models "in the wild" have other weights."""
    from training.experiments.study.measured import Measured
    from training.experiments.trials import told

    twin = f"{name.split('-')[0]}-scratch"
    kept = Measured.read()
    gain = kept.difference([(1, name), (-1, twin)]) if "-self-" in name else None
    if not gain:
        return ""
    return f"""Lung tumours, all labels: fine-tuned for 1,000 steps on the 150 patients of NSCLC-Radiomics whose scans it was pretrained on,
judged on the 98 of NSCLC-Radiogenomics (64 mm boxes), by `python -m training.experiments.robustness`: mean DSC **{gain["means"][0]:.3f}**,
against the same network from scratch {told(gain)} ({plural(len(kept.seeds(name)), "training")}, {len(kept.seeds(twin))} from scratch; 95% interval over
patients).
`model_cards/STUDY.md` compares it with other starts.

"""


def segmentation(name: str) -> str:
    if not measured(name):
        return ""
    rows = ""
    for label in (name, f"{name.split('-')[0]}-scratch"):
        if means := measured(label):
            rows += f"| {label} | {sum(means) / len(means):.3f} | {', '.join(f'{m:.3f}' for m in means)} |\n"
    return f"""Segmentation of soft-tissue sarcoma: fine-tuned on 26 scans, tested on 12 others (whole scans, their own grid), by
`python -m training.experiments.sarcoma`; the same recipe from initial weights beside it.

| encoder | mean DSC | each seed |
|---|---|---|
{rows}"""


def probing(name: str) -> str:
    from training.experiments.probe import beats_its_twin, table, twin

    found = kept("probe", "tasks")
    labels = [name, twin(name), "intensity alone", "position alone"]
    tasks = {t: {k: models[k] for k in labels if k in models} for t, models in found["tasks"].items()}
    if not any(name in models for models in tasks.values()):
        return "\nFrozen features of this model have not been probed yet.\n"
    verdict = (
        "In the linear probe it is better than its random twin."
        if beats_its_twin(found, name)
        else (
            "**In the linear probe it is not better than the same encoder with random weights**, in neither task with its interval: it "
            "ships for comparison only (`baseline_only`)."
        )
    )

    return f"""
Frozen features of single voxels, tumour or other tissue, by `{found["command"]}`: mean over patients that were not fitted on,
with 95% intervals.

{table(found | {"tasks": tasks})}
{verdict}
"""
