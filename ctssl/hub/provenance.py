"""Record where weights come from, in the header of `model.safetensors`, so that their sha256 covers it.

Entries are text: `code` (version, and commit in a checkout), `recipe_sha256` (of the settings, as JSON),
`manifest_sha256` (of the training data: sorted voxel hashes, or case names), `parent` (the starting weights),
`pretext`, `samples` (seen), `licence`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ctssl.files.weights import read_metadata, read_weights
from ctssl.hub.client import CONFIG, WEIGHTS


def facts(
    *,
    recipe: Any = None,
    manifest: Iterable[str] | None = None,
    parent: str = "",
    pretext: str = "",
    samples: int | str = "",
    licence: str = "",
) -> dict[str, str]:
    """Return the provenance metadata of weights that are about to be written.

    Args:
        recipe: settings that JSON can hold.
        manifest: one string per training scan.
        parent: the starting weights.
        pretext: the pretext task.
        samples: number of samples seen.
        licence: licence of the weights.
    """
    return {
        "code": code(),
        "recipe_sha256": "" if recipe is None else sha256(json.dumps(recipe, sort_keys=True)),
        "manifest_sha256": "" if manifest is None else sha256("\n".join(sorted(manifest))),
        "parent": parent,
        "pretext": pretext,
        "samples": str(samples),
        "licence": licence,
    }


def code() -> str:
    """Return the version, and in a checkout the commit: `ctssl VERSION, git 1a2b3c4-dirty`."""
    from ctssl import __version__

    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # an installed package may lie inside another project's repository
        return f"ctssl {__version__}"
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--tags", "--dirty"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return f"ctssl {__version__}"
    return f"ctssl {__version__}, git {done.stdout.strip()}"


def sha256(text: str) -> str:
    """Return the sha256 of a text as 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_of(model: Any) -> str:
    """Return the sha256 of all weights as float32.

    It is the same for a model as loaded and as saved again, in half precision or not.
    """
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_of(model: Any) -> str:
    """Return a hash of what a model's weights are now: that of the file it was loaded from while it holds them, otherwise
    `fingerprint_of`; of an ensemble, a hash of its members'. Networks of other libraries have the hash in their `spec`.
    """
    if members := getattr(model, "members", None):
        return sha256(" ".join(weights_of(member) for member in members))
    known = model.spec.sha256 if model.spec else ""
    source: Path | None = getattr(model, "origin", None)
    if known and (not hasattr(model, "origin") or (source and holds(source, model))):
        return known
    return fingerprint_of(model)


def lineage(model: Any, *, licence: str, pretext: str) -> dict[str, str]:
    """Return the metadata of a model that is saved by hand.

    Unchanged weights keep the metadata of the file they were loaded from; otherwise the model's own name
    becomes the parent.
    """
    source: Path | None = getattr(model, "origin", None)
    if source and (entries := read_metadata(source) if source.is_file() else {}) and holds(source, model):
        return entries
    spec = model.spec
    parent = f"{spec.name} sha256:{spec.sha256}" if spec and spec.sha256 else ""
    return facts(parent=parent, pretext=pretext, licence=licence)


def holds(weights: Path, model: Any) -> bool:
    """Return whether a file holds the model's current weights, in whatever precision; False for none, or a damaged one."""
    try:
        stored, own = read_weights(weights), model.state_dict()
    except ValueError:
        return False
    return stored.keys() == own.keys() and all(
        stored[key].to(value.dtype).equal(value.detach().cpu()) for key, value in own.items()
    )


def origin(folder: Path) -> dict[str, str]:
    """Collect where the model of a folder comes from: from its weights and from the files next to them."""
    entries = _pretraining(_read(folder / "training.json")) | _finetuning(_read(folder / "report.json"))
    entries |= _import(_read(folder / "import.json"))
    config = _read(folder / CONFIG)
    entries |= {key: config[key] for key in ("parent", "parent_sha256", "source") if config.get(key)}
    entries |= {key: value for key, value in read_metadata(folder / WEIGHTS).items() if value}
    return {key: str(value) for key, value in entries.items() if value not in (None, "")}


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object, or {}: these files only inform, so a damaged one does not make a model unusable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _pretraining(history: dict[str, Any]) -> dict[str, Any]:
    entries = {key: history.get(key) for key in ("command", "samples", "device", "hours", "torch")}
    run, scans = history.get("run"), history.get("scans")
    if isinstance(run, dict):
        entries |= {"recipe_sha256": sha256(json.dumps(run, sort_keys=True)), "parent": run.get("init")}
    return entries | ({"scans": len(scans)} if isinstance(scans, list) else {})


def _finetuning(report: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(report.get("train"), list):
        return {}
    held = report.get("held_out")
    return {
        "command": "ctssl finetune",
        "parent": "" if report.get("from_scratch") else report.get("model"),
        "cases": len(report["train"]),
        "held_out": len(held) if isinstance(held, dict) else "",
        "mean_dsc": report.get("mean_dsc"),
    }


def _import(report: dict[str, Any]) -> dict[str, Any]:
    source = report.get("source")
    if not isinstance(source, dict):
        return {}
    return {
        "command": f"ctssl import --from {source.get('family')}",
        "parent": source.get("file"),
        "parent_sha256": source.get("sha256"),
    }
