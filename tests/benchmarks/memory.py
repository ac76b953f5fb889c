"""Peak resident size of `segment` on a 512 x 512 x 600 scan: `python -m tests.benchmarks.memory [GB]`.

The scan is the package's phantom on a grid of that size (0.75 x 0.75 x 1 mm), written and read as NIfTI. Linux, macOS.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import ctssl
from ctssl.phantom import phantom
from ctssl.volume.grids import resample
from ctssl.volume.volume import Volume

SHAPE, SPACING = (512, 512, 600), (0.75, 0.75, 1.0)


def peak_gb() -> float:
    """Of this process so far. Linux counts in KiB, macOS in bytes."""
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    )


def make(path: Path) -> None:
    """A scan of that size, in int16."""
    small, _ = phantom(3.0)
    affine = np.diag([*SPACING, 1.0])
    middle = (small.affine @ [*[(n - 1) / 2 for n in small.shape], 1])[:3]
    affine[:3, 3] = middle - np.array(SPACING) * (np.array(SHAPE) - 1) / 2
    large = resample(small.array, small.affine, SHAPE, affine, fill=-1000.0)
    Volume(large.astype(np.int16), affine).save(path)


def main(gb: float = 8.0) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        code = (
            f"from tests.benchmarks.memory import make; from pathlib import Path; make(Path({str(path)!r}))"
        )
        subprocess.run([sys.executable, "-c", code], check=True)  # a process whose memory is not counted
        model = ctssl.segmenter("swin-wild-mim")
        print(f"before the scan: {peak_gb():.2f} GB")
        mask = model.segment(path, max_memory_gb=gb, progress=True)
        print(f"{' x '.join(map(str, mask.shape))} under a ceiling of {gb:g} GB: peak {peak_gb():.2f} GB")


if __name__ == "__main__":
    main(*(float(a) for a in sys.argv[1:2]))
