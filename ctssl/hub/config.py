"""Check a `config.json` from an untrusted source: it is believed only where its weights agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ctssl.zoo import Channel, Preprocess

LARGEST = 1 << 20  # upper limit of every number among an encoder's arguments
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
DEEP = ("depth", "depths")  # arguments that count blocks, each of which has its own weights


def check_types(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the config unchanged. Raises `ValueError` unless its entries have the right types."""
    for key, kind in TYPES.items():
        if config.get(key) is not None and not isinstance(config[key], kind):
            wanted = "a string" if kind is str else "an object"
            raise ValueError(
                f"{path}: invalid {key} {_short(config[key])} (must be {wanted}); download the file again"
            )
    if config["kind"] not in ("encoder", "segmenter"):
        raise ValueError(
            f"{path}: unknown kind {_short(config['kind'])}; this ctssl knows encoder and segmenter"
        )
    labels = config.get("labels") or {}
    said = [config["name"], config.get("parent"), *labels, *labels.values()]
    if odd := [text for text in said if isinstance(text, str) and not text.isprintable()]:
        raise ValueError(
            f"{path}: {_short(odd[0])} holds characters that control a terminal; write it in plain text"
        )
    absent = [key for key in ("name", "kind", "encoder", "encoder_args", "sha256") if config[key] is None]
    if absent:
        raise ValueError(f"{path}: {absent[0]} is empty; download the file again")
    return config


def check_encoder_args(args: dict[str, Any], path: Path, *, weights: int) -> None:
    """Raise `ValueError` unless an encoder could be built from these arguments.

    Args:
        args: arguments of the encoder.
        path: the config file, for error messages.
        weights: number of tensors in the weights file; an encoder cannot have more blocks.
    """
    for key, value in args.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) > 64 or not all(n is None or isinstance(n, (int, float, str)) for n in numbers):
            raise ValueError(f"{path} does not describe an encoder: invalid {key} {_short(value)}")
        plain = [n for n in numbers if isinstance(n, (int, float))]
        if any(not math.isfinite(n) or not 0 <= n <= LARGEST for n in plain):
            raise ValueError(
                f"{path} does not describe an encoder: invalid {key} {_short(value)} (must be 0 to {LARGEST})"
            )
        if key in DEEP and (len(plain) != len(numbers) or sum(plain) > weights):
            raise ValueError(
                f"{path} describes {key} {_short(value)}, but the weights file has {weights} tensors: "
                "the two files belong to different models"
            )


def read_preprocess(config: dict[str, Any]) -> Preprocess:
    """Return how a config prepares a scan. Raises `ValueError` for values that cannot prepare a CT."""
    pre = config["preprocess"]
    try:
        spacing, (low, high) = float(pre["spacing_mm"]), (float(v) for v in pre["window_hu"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"config.json of {config['name']}: preprocess {_short(pre)} needs spacing_mm and window_hu"
        ) from error
    if not 0.05 <= spacing <= 50 or not -100_000 <= low < high <= 100_000:
        raise ValueError(
            f"config.json of {config['name']}: a spacing of {spacing:g} mm and a window of {low:g} to "
            f"{high:g} HU cannot prepare a CT (0.05 to 50 mm, low < high)"
        )
    try:
        channels = tuple(
            Channel(str(name), float(least), float(most)) for name, least, most in pre.get("channels", ())
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"config.json of {config['name']}: invalid channels {_short(pre['channels'])} (must be [name, low, high], each)"
        ) from error
    if odd := [c for c in channels if not -math.inf < c.low < c.high < math.inf or not c.name.isprintable()]:
        raise ValueError(f"config.json of {config['name']}: invalid channel {_short(tuple(odd[0]))}")
    return Preprocess(spacing, (low, high), channels)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) < 80 else text[:77] + "..."
