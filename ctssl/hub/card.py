"""Model cards: one writer for all of them, and the card of a user's own model on the Hub."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctssl.zoo import beside

HUB_LICENCES = (
    "apache-2.0",
    "mit",
    "cc0-1.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-3.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
)
SAYS = {
    "code": "written by",
    "parent": "starting weights",
    "pretext": "pretext task",
    "samples": "samples seen",
    "licence": "licence",
    "cases": "training cases",
    "held_out": "held-out cases",
    "mean_dsc": "mean DSC on these",
    "recipe_sha256": "sha256 of the settings",
    "manifest_sha256": "sha256 of the list of scans",
}


@dataclass(frozen=True)
class Card:
    """A model card: `README.md` of a model folder.

    Args:
        title: name of the model.
        front: arguments of `huggingface_hub.ModelCardData`, which the Hub reads.
        limits: what it must not be used for; comes first.
        about: what it is.
        code: Python that uses it.
        sections: heading and text; an empty heading adds the text alone.
    """

    title: str
    front: dict[str, Any]
    limits: str
    about: str
    code: str
    sections: list[tuple[str, str]] = field(default_factory=list)

    def render(self) -> str:
        """Return the card as Markdown."""
        from huggingface_hub import ModelCardData

        common = {"library_name": "ctssl", "tags": ["ct", "medical-imaging", "3d"]}
        front = ModelCardData(**{**common, **self.front}).to_yaml().strip()
        parts = [
            f"---\n{front}\n---\n# {self.title}",
            f"**Limits first.** {self.limits}",
            self.about,
            f"```python\nimport ctssl\n\n{self.code}\n```",
        ]
        parts += [f"## {heading}\n{text}" if heading else text for heading, text in self.sections]
        return "\n\n".join(part.strip("\n") for part in parts if part.strip("\n")) + "\n"


def pictures(names: list[str]) -> str:
    """Return the Markdown of the pictures among the files of a folder."""
    return "\n\n".join(f"![{name.removesuffix('.png')}]({name})" for name in names if name.endswith(".png"))


def card(folder: Path, repo: str, origin: dict[str, str]) -> str:
    """Return `README.md` of a model folder that goes to the Hub repository `repo`.

    It is made of `config.json` and the metadata of the weights alone: it names no case and shows no picture.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    segmenter = config["kind"] == "segmenter"
    labels = ", ".join(config.get("labels", {}).values())
    pre = config["preprocess"]
    what = f"A segmenter of {labels} in CT, head `{config['head']}`" if segmenter else "An encoder for CT"
    judged = "**How good it is has not been written down.**"
    if origin.get("mean_dsc"):
        judged = (
            f"It was judged on {origin.get('held_out')} held-out cases of its maker's own data (mean DSC "
            f"{origin['mean_dsc']}), which says little about scans from elsewhere."
        )
    rows = "\n".join(f"| {words} | {origin[key]} |" for key, words in SAYS.items() if origin.get(key))
    licence = str(config.get("licence", "")).lower()
    known = licence in HUB_LICENCES
    return Card(
        title=repo.split("/")[1],
        front={
            "pipeline_tag": "image-segmentation" if segmenter else "image-feature-extraction",
            "tags": ["ct", "medical-imaging", "3d", config["encoder"]],
            "license": licence if known else "other",
            "license_name": None if known else licence or "not-stated",
        },
        limits=f"It is not a medical device and must not be used for diagnosis. {judged}",
        about=f"{what}: {config['encoder']} with {config['parameters'] / 1e6:.2f} M parameters. Scans are prepared at\n"
        f"{pre['spacing_mm']:g} mm, {pre['window_hu'][0]:g} to {pre['window_hu'][1]:g} HU{beside(pre.get('channels', ()))}.",
        code=f'mask = ctssl.load_segmenter("{repo}").segment("scan.nii.gz")'
        if segmenter
        else f'features = ctssl.load("{repo}").embed("scan.nii.gz")',
        sections=[
            (
                "Where it comes from",
                f"| | |\n|---|---|\n{rows}\n\n`ctssl info {repo}` shows this from the weights themselves.",
            )
        ],
    ).render()
