"""What a `config.json` may say: it can come from a stranger, and is believed only where its weights agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

LARGEST = 1 << 20  # of any number among an encoder's arguments
TYPES = {
    "name": str,
    "kind": str,
    "encoder": str,
    "encoder_args": dict,
    "preprocess": dict,
    "sha256": str,
    "corpus": str,
    "pretext": str,
    "licence": str,
    "data": str,
    "head": str,
    "labels": dict,
    "parent": str,
}
DEEP = ("depth", "depths")  # arguments that count blocks, each of which has weights of its own


def of_right_types(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config, once its entries are words and tables where they should be. Raises `ValueError`."""
    for key, kind in TYPES.items():
        if config.get(key) is not None and not isinstance(config[key], kind):
            wanted = "a text" if kind is str else "an object"
            raise ValueError(
                f"{path}: {key} is {_short(config[key])}, where {wanted} is needed; get the file again"
            )
    if config["kind"] not in ("encoder", "segmenter"):
        raise ValueError(
            f"{path} is of the kind {_short(config['kind'])}; this ctssl knows encoder and segmenter"
        )
    absent = [key for key in ("name", "kind", "encoder", "encoder_args", "sha256") if config[key] is None]
    if absent:
        raise ValueError(f"{path}: {absent[0]} is empty; get the file again")
    return config


def plausible(args: dict[str, Any], path: Path, *, weights: int) -> None:
    """Raise `ValueError` for arguments of an encoder that nothing could be built from, before anything is.

    `weights`: tensors that belong to the model; there cannot be more blocks.
    """
    for key, value in args.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) > 64 or not all(n is None or isinstance(n, (int, float, str)) for n in numbers):
            raise ValueError(f"{path} does not describe an encoder: {key} is {_short(value)}")
        plain = [n for n in numbers if isinstance(n, (int, float))]
        if any(not math.isfinite(n) or not 0 <= n <= LARGEST for n in plain):
            raise ValueError(f"{path} does not describe an encoder: {key} is {_short(value)}")
        if key in DEEP and (len(plain) != len(numbers) or sum(plain) > weights):
            raise ValueError(
                f"{path} describes {key} {_short(value)}, and there are {weights} weights: "
                "the two files belong to different models"
            )


def preparation(config: dict[str, Any]) -> tuple[float, tuple[float, float]]:
    """Spacing in mm and window in HU of a config; `ValueError` where they prepare nothing."""
    pre = config["preprocess"]
    try:
        spacing, (low, high) = float(pre["spacing_mm"]), (float(v) for v in pre["window_hu"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"config.json of {config['name']}: preprocess {_short(pre)} needs spacing_mm and window_hu"
        ) from error
    if not 0.05 <= spacing <= 50 or not -100_000 <= low < high <= 100_000:
        raise ValueError(
            f"config.json of {config['name']}: a spacing of {spacing:g} mm and a window of {low:g} to {high:g} HU "
            "prepare no CT"
        )
    return spacing, (low, high)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end; a number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) < 80 else text[:77] + "..."
