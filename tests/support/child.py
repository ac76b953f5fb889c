"""A Python of its own, with its own cache of the Hub."""

import os
import subprocess
import sys
from pathlib import Path

import ctssl

ROOT = Path(__file__).parents[2]
NAME = "vit-wild-mim"  # the smallest
TAG = f"v{ctssl.__version__}"
FIND = "import sys; from ctssl.hub import find; print(find(sys.argv[1], revision=sys.argv[2] if sys.argv[2:] else None))"


def environment(**changes) -> dict[str, str]:
    """As on a new machine: no token, no models, no home of the Hub, but for `changes`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "CTSSL_"))}
    plain = dict(
        PYTHONPATH=str(ROOT),
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        NO_PROXY="127.0.0.1",
        OMP_NUM_THREADS="1",
    )
    return kept | plain | {key: str(value) for key, value in changes.items()}


def python(code: str, *args, **changes) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
    )


def found(*args, **changes) -> Path:
    done = python(FIND, *args, **changes)
    assert done.returncode == 0, done.stderr[-2000:]
    return Path(done.stdout.strip())


def refused(*args, **changes) -> str:
    """The last line that `find` leaves on the screen."""
    done = python(FIND, *args, **changes)
    assert done.returncode == 1, done.stdout
    return done.stderr.strip().splitlines()[-1]
