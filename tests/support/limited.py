"""A process with little memory."""

import subprocess
import sys
from pathlib import Path

LIMITED = """
import resource, sys, torch, nibabel, ctssl, ctssl.volume.nifti
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 29),) * 2)
for source in sys.argv[2:]:
    try:
        getattr(ctssl, sys.argv[1])(source)
    except ValueError as error:
        print("refused:", error)
# not `ru_maxrss`: what starts as a copy of a large process inherits its peak
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""
"""A process that may take 512 MB beside the libraries; anything but `ValueError` ends it with a traceback."""


def in_a_small_process(function: str, *sources: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, function, *map(str, sources)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()
