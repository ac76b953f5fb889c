"""A model folder: `config.json` and `model.safetensors`, the same in the wheel, on the Hub and in
`save_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctssl.files.atomic import file_sha256
from ctssl.files.text import read_json
from ctssl.hub.client import CONFIG, WEIGHTS
from ctssl.hub.config import of_right_types

FORMAT = "ctssl-1"


def bundled() -> Path:
    """The models that came with the package: `ctssl/_models` in a wheel, `model_cards` in a checkout."""
    package = Path(__file__).parents[1]
    inside, beside = package / "_models", package.parent / "model_cards"
    return beside if not inside.is_dir() and beside.is_dir() else inside


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder, checked for what every model has."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: a model folder holds {CONFIG} and {WEIGHTS}")
    config = read_json(path, cure=_cure(folder))
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(
            f"{path} is not a ctssl model (format {found!r}, expected {FORMAT!r}); update ctssl if it is newer"
        )
    missing = {"name", "kind", "encoder", "encoder_args", "preprocess", "parameters", "sha256"} - set(config)
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}; {_cure(folder)}")
    return of_right_types(config, path)


def verified(folder: Path, *, sha256: str | None = None) -> Path:
    """The folder, once its weights have the expected sha256.

    That of the table proves that the weights are the published ones; that of `config.json`, used for
    everything else, shows damage but not malice.
    """
    config, weights = read_config(folder), folder / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"no {WEIGHTS} in {folder}; {_cure(folder)}")
    expected = sha256 or config["sha256"]
    found = file_sha256(weights)
    if found != expected:
        whose = "the published model" if sha256 else CONFIG
        raise ValueError(
            f"{weights} is damaged or was changed: its sha256 is {found[:12]}..., {whose} says {str(expected)[:12]}...; "
            f"{_cure(folder)}"
        )
    return folder


def _cure(folder: Path) -> str:
    if bundled() in folder.parents:
        return (
            "install ctssl again from where it came, such as pip install --force-reinstall --no-deps . in its checkout "
            "(there, git checkout model_cards)"
        )
    if folder.parent.name == "snapshots":  # links into blobs/, which a new download would take as they are
        return (
            f"remove {folder.parent.parent} and load the model again to download it afresh; if that changes nothing, the "
            "repository itself is wrong: take another revision, or ask its owner"
        )
    return "copy or export the folder again"
