"""Python programs in processes that a prepared server forks: what they import is there at once.

A program is a module's name (`python -m`) or the path of a script. What has to start as a user starts it, imports and
environment and all, is run with `subprocess`.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "ctssl.cli",
        "ctssl.convert",
        "ctssl.finetuning",
        "ctssl.heads",
        "ctssl.robustness",
        "ctssl.similarity",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "monai.losses.dice",
        "monai.networks.nets.swin_unetr",
        "nibabel",
        "scipy.ndimage",
        "tests.support.fork",
        "training.pretrain",
    ]
)


def start(program: str | Path, *args: Any, into: Path, **environment: str) -> BaseProcess:
    """Start a program; what it prints goes to the files `out` and `err` of the folder `into`."""
    process = SERVER.Process(target=_play, args=(program, [*map(str, args)], into, environment))
    process.start()
    return process


def run(program: str | Path, *args: Any, timeout: float = 300) -> CompletedProcess[str]:
    """Run a program to its end."""
    (done,) = _run([{}], program, args, timeout)
    return done


def run_pair(program: str | Path, *args: Any, timeout: float = 300) -> list[CompletedProcess[str]]:
    """Run a program in two processes that find each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return _run(ranks, program, args, timeout)


def _run(environments: list[dict[str, str]], program: str | Path, args: tuple, timeout: float):
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(number) for number in range(len(environments))]
        for place in places:
            place.mkdir()
        running = [
            start(program, *args, into=place, **one) for place, one in zip(places, environments, strict=True)
        ]
        found = []
        for process, place in zip(running, places, strict=True):
            process.join(timeout)
            if process.exitcode is None:
                for one in running:
                    one.kill()
                raise AssertionError(f"{program} hangs")
            found.append(
                CompletedProcess(
                    [str(program), *map(str, args)],
                    process.exitcode,
                    (place / "out").read_text(),
                    (place / "err").read_text(),
                )
            )
        return found


def _play(program: str | Path, args: list[str], into: Path, environment: dict[str, str]) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(into / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    os.environ.update(environment)
    sys.argv = [str(program), *args]
    if isinstance(program, Path):
        runpy.run_path(str(program), run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
