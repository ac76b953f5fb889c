"""Read and write safetensors files. What is not a complete one is a `ValueError` that says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctssl.files.atomic import write_whole


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file raises into a `ValueError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError) as error:  # KeyError: a type unknown to torch
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}); copy or download it again"
        ) from error


def read_weights(path: Path) -> dict[str, Any]:
    """Return the tensors of a file, on the CPU. Raises `ValueError` for a damaged one."""
    from safetensors.torch import load_file

    with whole(path):
        return load_file(path)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a file, from its header alone. Raises `ValueError` for a damaged one."""
    from safetensors import safe_open

    with whole(path), safe_open(path, framework="np") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a file, without what the format adds. Raises `ValueError` for a damaged one."""
    from safetensors import safe_open

    with whole(path), safe_open(path, framework="np") as file:
        entries: Mapping[str, str] = file.metadata() or {}
    return {key: value for key, value in entries.items() if key != "format"}


def write_weights(path: Path, state: dict[str, Any], *, metadata: dict[str, str] | None = None) -> Path:
    """Write tensors as safetensors, completely or not at all."""
    from safetensors.torch import save  # not `save_file`, which leaves a file of its own where it is killed

    return write_whole(path, save(state, metadata))
