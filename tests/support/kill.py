"""A `ctssl` command that is killed at a chosen moment, in a process of its own that a prepared server forks at once."""

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors.torch import load_file

import ctssl
from tests.support.fork import SERVER


def run(
    argv: list[str], *, at_rename: int | None = None, after: float | None = None, cases: int | None = None
) -> int:
    """Exit code of `ctssl ARGV`; -9 when it was killed: before its rename number `at_rename` (from 1), or `after` seconds."""
    process = SERVER.Process(target=_command, args=(argv, at_rename))
    process.start()
    if after is not None:
        process.join(after)
        if process.pid and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{argv[0]} hangs")
    return process.exitcode


def _command(argv: list[str], at_rename: int | None) -> None:
    import torch

    from ctssl import cli
    from ctssl.finetuning import loop as fitting

    torch.set_num_threads(1)
    null = open(os.devnull, "w")  # noqa: SIM115
    sys.stdout = sys.stderr = null
    hours = itertools.count()  # an hour passes at every look, so a training keeps its state after every step
    fitting.time = SimpleNamespace(monotonic=lambda: 3600.0 * next(hours))  # type: ignore[assignment]
    renames, replace = [0], os.replace

    def counted(source: Any, target: Any, **more: Any) -> None:
        renames[0] += 1
        if renames[0] == at_rename:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target, **more)

    os.replace = counted
    sys.exit(cli.main(argv))


def whole(folder: Path) -> list[str]:
    """The files below a folder, each of which has to be complete; what is being written has a name that begins with a dot."""
    found = []
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_dir() or any(part.startswith(".part") for part in place.parts):
            continue
        found.append(str(place))
        if path.name.endswith((".nii", ".nii.gz")):
            ctssl.read(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".dcm":
            import pydicom

            result = pydicom.dcmread(path)
            assert result.ROIContourSequence if result.Modality == "RTSTRUCT" else result.pixel_array.ndim, (
                path
            )
        elif path.suffix == ".png":
            assert path.read_bytes()[-8:-4] == b"IEND", path
        else:
            assert path.read_bytes()[-1:] == b"\n", path
    return found
