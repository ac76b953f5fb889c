"""Which scans a model was trained on: `seen.json` in its folder."""

from __future__ import annotations

import json
import os
from typing import Any

from ctssl.files.text import read_json
from ctssl.hub.folder import ModelFolder
from ctssl.hub.lookup import open_model
from ctssl.zoo import MODELS

SEEN = "seen.json"  # in a model's folder: hashes of the scans that it was pretrained on


def seen_after(before: dict[str, Any], labelled: list[str], *, salt: str) -> str:
    """`seen.json` of what goes on from a model that has seen `before`, with scans of these salted hashes, and
    their masks."""
    found = {"salt": salt, "voxels": before.get("voxels", []), "series": before.get("series", [])}
    return (
        json.dumps({**found, "labelled": sorted({*before.get("labelled", []), *labelled})}, indent=1) + "\n"
    )


def seen_by(model: Any) -> dict[str, Any]:
    """`seen.json` of a model, or of the published encoder that it was fine-tuned from; empty where there is
    none."""
    if not isinstance(model, (str, os.PathLike, ModelFolder)):
        return {}
    folder = open_model(model)
    parent = folder.config.get("parent")
    if not (folder.path / SEEN).is_file() and parent in MODELS:
        folder = open_model(parent)
    path = folder.path / SEEN
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not all(
        isinstance(found.get(k, []), list) for k in ("voxels", "labelled", "series")
    ):
        raise ValueError(
            f"{path} is not the list of scans that a model was pretrained on; get the model again"
        )
    return found
