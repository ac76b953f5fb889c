"""The card of a user's own model on the Hub, from its `config.json` and its weights' metadata alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HUB_LICENCES = (
    "apache-2.0",
    "mit",
    "cc0-1.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
)
SAYS = {
    "code": "written by",
    "parent": "started from",
    "pretext": "pretext",
    "samples": "samples seen",
    "licence": "licence",
    "cases": "cases to train on",
    "held_out": "cases held out",
    "mean_dsc": "mean DSC on these",
    "recipe_sha256": "sha256 of the settings",
    "manifest_sha256": "sha256 of the list of scans",
}


def card(folder: Path, repo: str, told: dict[str, str]) -> str:
    """`README.md` for a model folder that goes to `repo`; `told`: its metadata. Names no case and shows no
    picture."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    segmenter = config["kind"] == "segmenter"
    labels = ", ".join(config.get("labels", {}).values())
    pre = config["preprocess"]
    use = (
        f'mask = ctssl.load_segmenter("{repo}").segment("scan.nii.gz")'
        if segmenter
        else f'features = ctssl.load("{repo}").embed("scan.nii.gz")'
    )
    what = f"A segmenter of {labels} in CT, head `{config['head']}`" if segmenter else "An encoder for CT"
    judged = "**How good it is has not been written down.**"
    if told.get("mean_dsc"):
        judged = (
            f"It was judged on {told.get('held_out')} held-out cases of its maker's own data (mean DSC "
            f"{told['mean_dsc']}), which says little about scans from elsewhere."
        )
    rows = "\n".join(f"| {words} | {told[key]} |" for key, words in SAYS.items() if told.get(key))
    return f"""---
{front_matter(config, segmenter)}
---
# {repo.split("/")[1]}

**Limits first.** It is not a medical device and must not be used for diagnosis. {judged}

{what}: {config["encoder"]} with {config["parameters"] / 1e6:.2f} M parameters. Scans are prepared at
{pre["spacing_mm"]:g} mm, {pre["window_hu"][0]:g} to {pre["window_hu"][1]:g} HU.

```python
import ctssl

{use}
```

## Where it comes from

| | |
|---|---|
{rows}

`ctssl info {repo}` shows this from the weights themselves.
"""


def front_matter(config: dict[str, Any], segmenter: bool) -> str:
    """What the Hub reads."""
    from huggingface_hub import ModelCardData

    licence = str(config.get("licence", "")).lower()
    known = licence in HUB_LICENCES
    data = ModelCardData(
        library_name="ctssl",
        pipeline_tag="image-segmentation" if segmenter else "image-feature-extraction",
        tags=["ct", "medical-imaging", "3d", config["encoder"]],
        license=licence if known else "other",
        license_name=None if known else "not-stated",
    )
    return data.to_yaml().strip()
