"""A run that takes hours: asked to stop by a signal, alone in its folder, and tidy after one that was killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, which has no such locks
    fcntl: Any = None

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOCK = ".lock"
ONCE_MORE = (
    b"\nstopping after this step, and keeping the state; once more stops at once, without keeping it\n"
)


class Stopped(KeyboardInterrupt):
    """A run that kept its state because it was asked to stop.

    Attributes:
        code: exit code of a command that was stopped so.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.code = 128 + number


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM in the list instead of ending at once; the second one does.

    What is ignored stays ignored (`nohup`). Outside of the main thread, where Python handles no signals, the
    list stays empty.
    """
    asked: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    before = {one: signal.getsignal(one) for one in SIGNALS if main}
    before = {one: old or signal.SIG_DFL for one, old in before.items() if old != signal.SIG_IGN}

    def restore() -> None:
        for one, old in before.items():
            signal.signal(one, old)

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        restore()
        os.write(2, ONCE_MORE)

    for one in before:
        signal.signal(one, note)
    try:
        yield asked
    finally:
        restore()


def leave_signals(worker: int = 0) -> None:
    """Ignore SIGINT and SIGTERM in a worker process: they reach the whole group, and the parent decides."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Make a folder and hold it for this process.

    Raises `FileExistsError` while another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+") as file:
        if fcntl is not None:
            try:  # a lock of this process alone: its workers do not inherit it
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if not isinstance(error, (BlockingIOError, PermissionError)):
                    raise
                file.seek(0)
                raise FileExistsError(
                    f"process {file.read().strip() or '?'} is at work in {folder}; wait until it has ended, or "
                    "choose another --out"
                ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def check_alone(folder: Path) -> None:
    """Raise `FileExistsError` if another process holds a folder; it need not exist."""
    if (folder / LOCK).exists():
        with only_process(folder):
            pass


def clear_parts(folder: Path, *names: str) -> None:
    """Remove the unfinished files of processes that were killed.

    Args:
        folder: a folder; all of it has to belong to this process if no names are given.
        names: of the files that were being written. Default: all.
    """
    for path, number in find_parts(folder, *names):
        if _is_alive(number):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def find_parts(folder: Path, *names: str) -> list[tuple[Path, int]]:
    """Return the unfinished files in a folder, of `names` or all, each with the number of its process."""
    found = []
    for path in folder.glob(".part*"):
        number = re.match(r"\.part-?(\d{1,9})(?:-(.*))?$", path.name)
        if number is not None and (not names or number[2] in names):
            found.append((path, int(number[1])))
    return found


def _is_alive(number: int) -> bool:
    """Return whether another process has this number."""
    if number == os.getpid() or fcntl is None:  # Windows has no signal 0
        return number != os.getpid()
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
