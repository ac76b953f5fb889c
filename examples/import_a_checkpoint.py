"""Compare another project's encoder with ours: `python examples/import_a_checkpoint.py [CHECKPOINT
[FAMILY]]`.

Without a checkpoint, a MONAI SwinUNETR with random weights is used.
"""

import sys
import tempfile
from pathlib import Path

import torch

import ctssl
from ctssl.phantom import phantom
from ctssl.similarity import compare


def stand_in(folder: Path) -> str:
    from monai.networks.nets.swin_unetr import SwinUNETR

    torch.save(
        {"state_dict": SwinUNETR(1, 2, feature_size=12, num_heads=(1, 2, 2, 4)).state_dict()},
        folder / "swin.pt",
    )
    return str(folder / "swin.pt")


def main(checkpoint: str = "", family: str = "monai-swinunetr") -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint or stand_in(Path(folder))
        merging = "1.5" if family.startswith("monai-swin") else None  # the MONAI version that trained it
        done = ctssl.import_checkpoint(
            checkpoint, out=Path(folder, "theirs"), family=family, merging=merging, spacing_mm=2.0
        )
        print(f"{done.family}: {done.counts}")

        theirs, own = ctssl.load(Path(folder, "theirs")), ctssl.load("swin-wild-mim")
        scan = phantom(4.0)[0]
        print(
            f"features of {scan.name}: {tuple(theirs.embed(scan).shape)} and {tuple(own.embed(scan).shape)}"
        )
        similarity = compare(theirs, own, [scan], crops=8, batch=8, size=32)
        print(f"CKA of the last blocks: {similarity.matrix[-1, -1]:.2f}")
        print(f"default head: {type(ctssl.segmenter(theirs).head).__name__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
