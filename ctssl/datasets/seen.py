"""Which scans a model was trained on: `seen.json` in its folder.

It holds salted hashes of voxels, which recognise exact copies of a scan and tell nothing else about it. Scheme 1
hashed salt and voxels together; scheme 2 hashes the salt with the hash of the voxels, so that voxels are hashed
once, whatever the salt. `partial`: the model was trained on more than these.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from ctssl.files.text import read_json
from ctssl.hub.folder import SEEN as SEEN
from ctssl.hub.folder import ModelFolder
from ctssl.hub.lookup import open_model
from ctssl.volume.volume import Volume, voxel_hash
from ctssl.zoo import MODELS

SCHEME = 2


def salted(voxels: str, salt: str) -> str:
    """Return the salted hash (scheme 2) of a hash of voxels.

    >>> salted("a", "b") == salted("a", "c")
    False
    """
    return hashlib.sha256(f"{salt} {voxels}".encode()).hexdigest()


def scan_hash(scan: Volume, seen: dict[str, Any], salt: str) -> str:
    """Return the salted hash of a scan, in the scheme and with the salt of `seen`.

    Args:
        scan: in HU.
        seen: `seen.json` of a model; empty for none.
        salt: where `seen` is empty.
    """
    salt = seen.get("salt", salt)
    return voxel_hash(scan, salt) if scheme_of(seen) == 1 else salted(voxel_hash(scan), salt)


def scheme_of(seen: dict[str, Any]) -> int:
    """Return the scheme of a `seen.json`; the present one for none."""
    return int(seen.get("scheme", 1)) if seen else SCHEME


def incomplete(seen: dict[str, Any] | None) -> bool:
    """Return whether a model was, or may have been, trained on scans that its `seen.json` does not hold ({}: has none; None:
    there is no model)."""
    return seen is not None and (not seen or bool(seen.get("partial")))


def seen_after(before: dict[str, Any] | None, labelled: list[str], *, salt: str) -> str:
    """Return `seen.json` of what goes on from a model that has seen `before` (None: from random weights), with scans of these
    salted hashes, and their masks."""
    partial = {"partial": True} if incomplete(before) else {}
    before = before or {}
    record: dict[str, Any] = {"scheme": 2} if scheme_of(before) == SCHEME else {}
    record |= partial
    record |= {"salt": salt, "voxels": before.get("voxels", []), "series": before.get("series", [])}
    return (
        json.dumps({**record, "labelled": sorted({*before.get("labelled", []), *labelled})}, indent=1) + "\n"
    )


def seen_by(model: Any) -> dict[str, Any]:
    """Read `seen.json` of a model; that of the published encoder that it was fine-tuned from, as `partial`, where it has none;
    empty where there is neither.

    Raises `ValueError` for a file that is not such a record.
    """
    if not isinstance(model, (str, os.PathLike, ModelFolder)):
        return {}
    folder, partial = open_model(model), {}
    parent = folder.config.get("parent")
    if not (folder.path / SEEN).is_file() and parent in MODELS:
        folder, partial = open_model(parent), {"partial": True}
    path = folder.path / SEEN
    if not path.is_file():
        return {}
    record = read_json(path)
    lists = ("voxels", "labelled", "series")
    known = isinstance(record, dict) and all(isinstance(record.get(k, []), list) for k in lists)
    if not known or record.get("scheme", 1) not in (1, SCHEME):
        raise ValueError(
            f"{path} is not the list of scans that a model was pretrained on; get the model again"
        )
    return record | partial
