"""The card of a model, written from its files. Every number comes from one of them."""

import json
from collections import Counter
from pathlib import Path

RESULTS = Path(__file__).parent / "experiments" / "results"
PRETEXTS = {
    "mim": "masked image modelling (SimMIM, arXiv 2111.09886; the MIP loss of SMIT, arXiv 2205.10342)",
    "contrastive": "contrastive learning (SimCLR, arXiv 2002.05709)",
    "itd": "image token self-distillation (ITD of SMIT, arXiv 2205.10342; DINO, arXiv 2104.14294)",
    "itd_mpd": "image and masked patch token self-distillation (ITD and MPD of SMIT, arXiv 2205.10342)",
    "smit": "SMIT: masked image prediction with image and patch token self-distillation (arXiv 2205.10342)",
    "mae": "a masked autoencoder (arXiv 2111.06377)",
    "rotate_inpaint_contrast": "rotation, inpainting and contrast (arXiv 2111.14791)",
}
CORPORA = {
    "wild": "in the wild: public CTs of many collections, scanners and body parts, not curated for any task",
    "self": "self: only the training side of the task's own scans (soft-tissue sarcoma), without their labels",
}


def card(config: dict, history: dict) -> str:
    """`README.md` of a model folder, from its `config.json` and `training.json`."""
    name, run, curve = config["name"], history["run"], history["curve"]
    low, high = config["preprocess"]["window_hu"]
    spacing = config["preprocess"]["spacing_mm"]
    unseen = history["unseen"]
    counts = Counter((row["collection"] or row["source"], row["licence"]) for row in history["scans"])
    scans = "\n".join(f"| {c} | {n} | {licence} |" for (c, licence), n in sorted(counts.items()))
    untrained = ", ".join(f"`{key}`" for key in config["untrained"]) or "none"
    return f"""---
library_name: ctssl
license: apache-2.0
pipeline_tag: image-feature-extraction
tags: [ct, medical-imaging, 3d, self-supervised, {config["encoder"]}]
---
# {name}

A 3D {config["encoder"].capitalize()} encoder for CT with {config["parameters"] / 1e6:.2f} M parameters, pretrained with
{PRETEXTS[run["task"]]}, {CORPORA[run["corpus"]]}.

```python
import ctssl

encoder = ctssl.load("{name}")
features = encoder.embed("scan.nii.gz")  # ({config_channels(config)},)
```

**Input.** CT in Hounsfield units, one 3D scan. `encoder.preprocess` brings it to RAS+ axes and {spacing:g} mm isotropic
spacing and maps {low:g}..{high:g} HU to 0..1.

## Training
`{history["command"]}`: {run["steps"]} steps, {history["samples"]} samples in crops of {run["crop"]} voxels, AdamW,
learning rate {run["lr"]:g}, {history["hours"]:.2f} hours on {history["device"]} ({history["processes"]} process). The loss
went from {curve[0]["loss"]:.3f} (first {max(1, run["steps"] // len(curve))} steps) to {curve[-1]["loss"]:.3f} (last); on {unseen["crops"]} crops of scans it
has not seen (the training side of the corpus "{unseen["corpus"]}") it is {unseen["loss"]:.3f}. The whole curve is in `training.json`.
Parameters that this pretext does not reach and that are as initialised: {untrained}.

| scans from | number | licence |
|---|---|---|
{scans}

## What it is worth
{results(name)}
## Limits
Small on purpose: it was trained on two CPU cores from {len(history["scans"])} scans. It has seen no labels and knows no disease. It is not a
medical device and must not be used for diagnosis. Scans must be CT in HU; `ctssl` warns about those that are not.
"""


def config_channels(config: dict) -> int:
    args = config["encoder_args"]
    if config["encoder"] == "vit":
        return args["width"]
    return args["width"] * 2 ** (len(args["depths"]) - 1 + args["merge_last"])


def results(name: str) -> str:
    """What the experiments measured with this model."""
    path = RESULTS / "sarcoma.json"
    measured = json.loads(path.read_text()) if path.exists() else {"models": {}}
    if name not in measured["models"]:
        return "Fine-tuning of this model has not been measured yet.\n"
    rows = ""
    for label in (name, f"{name} from scratch"):
        means = [row["mean_dsc"] for row in measured["models"].get(label, [])]
        if means:
            rows += f"| {label} | {sum(means) / len(means):.3f} | {', '.join(f'{m:.3f}' for m in means)} |\n"
    return f"""Segmentation of soft-tissue sarcoma: fine-tuned on 26 scans, tested on 12 others (whole scans, their own grid), by
`{measured["command"]}`; the same recipe from initial weights beside it.

| encoder | mean DSC | each seed |
|---|---|---|
{rows}"""
