"""The tensors of a checkpoint that a stranger made, read without trusting it.

A `.safetensors` file is data and is read here. A `.pt` or `.pth` file is a pickle: the archive is looked at
first (sizes, compression), then a process of its own opens it (`ctssl.convert.unpickle`), with
`weights_only=True`, a time limit and, where the system has one, a memory limit. What comes back is a
safetensors file.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

CEILING = 16 << 30  # bytes of tensors that a checkpoint may hold
STRUCTURE = 256 << 20  # bytes of the pickle itself, that is, without the tensors
SPARE = 2 << 30  # bytes of memory beside three times the file: the pickle's own, and the copy that is written
OTHERS = {
    b"\x1f\x8b": "a gzip file: unpack it first",
    b"<": "a web page, not the file behind it: download it again",
    b"\x89HDF": "an HDF5 (Keras) file",
}


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` by their way through the containers, `state_dict/module.norm.weight`; `skipped` containers
    and their sizes."""

    tensors: dict[str, Tensor]
    skipped: dict[str, int] = field(default_factory=dict)


def read_checkpoint(file: Path, *, seconds: float = 600.0) -> Checkpoint:
    """All tensors of a `.safetensors`, `.pt` or `.pth` file; those of optimizers are only counted.

    Raises `FileNotFoundError` or `ValueError` with what is wrong. Nothing in the file is run.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; give a checkpoint: .pt, .pth or .safetensors")
    with open(file, "rb") as opened:
        start = opened.read(64)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < file.stat().st_size:
        return Checkpoint(_read_safetensors(file))
    _look(file, start)
    return _open_in_child(file, seconds)


def _look(file: Path, start: bytes) -> None:
    """Refuse what is no checkpoint, and archives whose content is larger than they are."""
    for mark, words in OTHERS.items():
        if start.lstrip().startswith(mark):
            raise ValueError(f"{file} is {words}")
    size = file.stat().st_size
    if size > CEILING:
        raise ValueError(f"{file} has {size} bytes; ctssl opens checkpoints of up to {CEILING}")
    if not start.startswith(b"PK"):
        if not start.startswith(b"\x80"):
            raise ValueError(
                f"{file} is not a PyTorch checkpoint (neither a zip archive nor a pickle) and not safetensors"
            )
        return  # a checkpoint of PyTorch before 1.6: a pickle with the tensors behind it
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{file} is not a whole archive ({error}); copy or download it again") from error
    names = [e.filename.partition("/")[2] for e in entries]
    if "constants.pkl" in names:
        raise ValueError(f"{file} is a TorchScript program, not a checkpoint; ask for the state dict")
    if "data.pkl" not in names:
        raise ValueError(f"{file} is a zip archive but not a PyTorch checkpoint: it has no data.pkl")
    if sum(e.file_size for e in entries) > size or any(
        e.compress_type != zipfile.ZIP_STORED for e in entries
    ):
        raise ValueError(
            f"{file} unpacks to more than it is: PyTorch never compresses a checkpoint, so it did not write this"
        )
    if any(e.file_size > STRUCTURE for e in entries if e.filename.endswith("data.pkl")):
        raise ValueError(
            f"{file} has a data.pkl of more than {STRUCTURE} bytes, which no list of weights needs"
        )


def _open_in_child(file: Path, seconds: float) -> Checkpoint:
    import safetensors

    from ctssl.convert import unpickle

    size = file.stat().st_size
    paths = {str(Path(str(m.__file__)).parents[1]) for m in (torch, safetensors)}
    settings = {
        "ceiling": min(CEILING, 2 * size + (1 << 20)),
        "memory": 3 * size + SPARE,
        "seconds": math.ceil(seconds) + 1,
        "paths": sorted(paths),
    }
    with tempfile.TemporaryDirectory(prefix="ctssl-import-") as folder:
        out = Path(folder, "tensors.safetensors")
        command = [
            sys.executable,
            "-I",
            str(unpickle.__file__),
            str(file.resolve()),
            str(out),
            json.dumps(settings),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
            )
            answer = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"{file} was not open after {seconds:g} seconds and was given up") from error
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"{file} cannot be opened: the process that tried ended without an answer, "
                "probably for want of memory or time"
            ) from error
        if "error" in answer:
            raise ValueError(
                f"{file}: {answer['error']}; ask its makers for a state dict or safetensors, which hold "
                "tensors alone"
            )
        return Checkpoint(_read_safetensors(out), answer["skipped"])


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{file} is not a complete safetensors file ({error}); copy or download it again"
        ) from error
