"""What the header of a shifted scan says of how it was made, so that one is not taken for another."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from ctssl.shifts import REVISION, SHIFTS
from ctssl.volume.volume import Volume, voxel_hash

CLEAN = "clean"  # the scan as it is
MADE = "ctssl"  # how a stamp begins
ROOM, PROOF = 79, 15  # characters in the header's `descrip`, and in `intent_name`
SCAN = 16  # characters of a scan's hash


def named(name: str, severity: int) -> str:
    """The folder of a shift: `clean`, `dose-3`."""
    return name if name == CLEAN else f"{name}-{severity}"


def together(severities: dict[str, int]) -> str:
    """A name for several shifts, one after the other: `dose-3+thickness-2`; `clean` for none."""
    return "+".join(named(name, severities[name]) for name in SHIFTS if name in severities) or CLEAN


def content(volume: Volume) -> str:
    """Changes with the voxels or the grid."""
    return voxel_hash(volume, salt=str((np.round(volume.affine, 3) + 0.0).tolist()))


def stamp_of(place: str, seed: int, scan: str) -> str:
    """By which shifts (`together`), with which seed and revision, and of which scan (`content`) it was
    made."""
    start, end = f"{MADE} {place} seed {seed}", f" by {REVISION} of "
    if len(start) + len(end) + SCAN > ROOM:  # whatever is known of the scan
        start = f"{MADE} {hashlib.sha256(start.encode()).hexdigest()[:16]}"
    return start + end + scan[:SCAN]


def differs(told: str, stamp: str) -> str:
    """What two stamps disagree on, in words; empty for the same."""
    mine, yours = (text.rpartition(" of ") for text in (told, stamp))
    if told == stamp:
        return ""
    if not told:
        return "nothing proves how it was made"
    if mine[0] == yours[0]:
        return "it was made of another scan"
    if mine[0].rpartition(" by ")[0] == yours[0].rpartition(" by ")[0]:
        return "it was made by another version of the shifts"
    return "it was made by other shifts or with another seed"


def stamped(scan: Volume, stamp: str) -> Volume:
    """The scan with this text in its header, and a hash of its voxels, since headers are copied to masks and
    edited scans."""
    import nibabel

    known = scan.header
    header = nibabel.Nifti1Header() if known is None else nibabel.Nifti1Header.from_header(known, check=False)
    header["descrip"], header["intent_name"] = stamp.encode(), voxel_hash(scan)[:PROOF].encode()
    return replace(scan, header=header)


def stamp_in(scan: Volume) -> str:
    """The stamp of a scan; empty where it has none, or other voxels than those that were stamped."""
    if scan.header is None:
        return ""
    stamp, proof = (
        bytes(scan.header[key]).rstrip(b"\0").decode("latin-1") for key in ("descrip", "intent_name")
    )
    return stamp if stamp.startswith(f"{MADE} ") and proof == voxel_hash(scan)[:PROOF] else ""
