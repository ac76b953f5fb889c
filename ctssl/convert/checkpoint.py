"""Read the tensors of an untrusted checkpoint.

A `.safetensors` file is data and is read here. A `.pt` or `.pth` file is a pickle: the archive is inspected
first (sizes, compression), then a separate process opens it (`ctssl.convert.unpickle`), with
`weights_only=True`, a time limit and, where the system supports it, a memory limit. It returns a safetensors
file.
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

from ctssl.files.weights import read_weights

CEILING = 16 << 30  # most bytes of tensors in a checkpoint
STRUCTURE = 256 << 20  # most bytes of the pickle itself, without the tensors
SPARE = 2 << 30  # bytes of memory on top of three times the file, for the pickle and the written copy
OTHERS = {
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"<": "a web page, not the checkpoint; download it again",
    b"\x89HDF": "an HDF5 (Keras) file; give a PyTorch or safetensors checkpoint",
}


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint.

    Attributes:
        tensors: tensors by their path through the containers, `state_dict/module.norm.weight`.
        skipped: skipped containers and their number of tensors.
    """

    tensors: dict[str, Tensor]
    skipped: dict[str, int] = field(default_factory=dict)


def read_checkpoint(file: Path, *, seconds: float = 600.0) -> Checkpoint:
    """Read all tensors of a `.safetensors`, `.pt` or `.pth` file; those of optimizers are only counted.

    Nothing in the file is executed.

    Args:
        file: the checkpoint.
        seconds: time limit for opening it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, is damaged, or holds more than tensors.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; give a checkpoint (.pt, .pth or .safetensors)")
    with open(file, "rb") as opened:
        start = opened.read(64)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < file.stat().st_size:
        return Checkpoint(read_weights(file))
    _check_archive(file, start)
    return _open_in_child(file, seconds)


def _check_archive(file: Path, start: bytes) -> None:
    """Raise `ValueError` unless the file is a checkpoint whose content is not larger than the file."""
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
        return  # a checkpoint of PyTorch before 1.6: a pickle followed by the tensors
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{file} is not a complete archive ({error}); copy or download it again") from error
    names = [e.filename.partition("/")[2] for e in entries]
    if "constants.pkl" in names:
        raise ValueError(f"{file} is a TorchScript program, not a checkpoint; use the state dict")
    if "data.pkl" not in names:
        raise ValueError(f"{file} is a zip archive but not a PyTorch checkpoint (it has no data.pkl)")
    if sum(e.file_size for e in entries) > size or any(
        e.compress_type != zipfile.ZIP_STORED for e in entries
    ):
        raise ValueError(
            f"{file} is compressed or unpacks to more than its size, which PyTorch checkpoints never do; "
            "get it from another source"
        )
    if any(e.file_size > STRUCTURE for e in entries if e.filename.endswith("data.pkl")):
        raise ValueError(
            f"{file} has a data.pkl of more than {STRUCTURE} bytes, too large for a list of weights"
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
            raise ValueError(
                f"{file} was not open after {seconds:g} seconds; raise the limit (seconds=)"
            ) from error
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"{file} cannot be opened: the process that opened it was killed, "
                "probably for lack of memory or time"
            ) from error
        if "error" in answer:
            raise ValueError(
                f"{file}: {answer['error']}; ask the authors for a state dict or safetensors, which hold "
                "only tensors"
            )
        return Checkpoint(read_weights(out), answer["skipped"])
