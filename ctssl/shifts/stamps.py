"""Stamp the header of a shifted scan with how it was made, so that scans are not confused."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from ctssl.shifts import REVISION, SHIFTS
from ctssl.volume.volume import Volume, voxel_hash

CLEAN = "clean"  # the scan as it is
MADE = "ctssl"  # prefix of a stamp
ROOM, PROOF = 79, 15  # characters in the header's `descrip`, and in `intent_name`
SCAN = 16  # characters of the scan's hash


def shift_name(name: str, severity: int) -> str:
    """Return the folder name of a shift.

    >>> shift_name("clean", 0), shift_name("dose", 3)
    ('clean', 'dose-3')
    """
    return name if name == CLEAN else f"{name}-{severity}"


def combined_name(severities: dict[str, int]) -> str:
    """Return a name for several shifts in sequence; "clean" for none.

    >>> combined_name({"thickness": 2, "dose": 3})
    'dose-3+thickness-2'
    """
    return "+".join(shift_name(name, severities[name]) for name in SHIFTS if name in severities) or CLEAN


def hash_content(volume: Volume) -> str:
    """Return a hash of the voxels and the grid."""
    return voxel_hash(volume, salt=str((np.round(volume.affine, 3) + 0.0).tolist()))


def make_stamp(place: str, seed: int, scan: str) -> str:
    """Return the stamp of a shifted scan.

    Args:
        place: the shifts (`combined_name`).
        seed: seed of the noise.
        scan: hash of the original scan (`hash_content`).
    """
    start, end = f"{MADE} {place} seed {seed}", f" by {REVISION} of "
    if len(start) + len(end) + SCAN > ROOM:  # independent of the scan
        start = f"{MADE} {hashlib.sha256(start.encode()).hexdigest()[:16]}"
    return start + end + scan[:SCAN]


def describe_difference(given: str, stamp: str) -> str:
    """Return how two stamps differ; "" if they are equal."""
    mine, yours = (text.rpartition(" of ") for text in (given, stamp))
    if given == stamp:
        return ""
    if not given:
        return "it has no valid stamp that says how it was made"
    if mine[0] == yours[0]:
        return "it was made from another scan"
    if mine[0].rpartition(" by ")[0] == yours[0].rpartition(" by ")[0]:
        return "it was made by another version of the shifts"
    return "it was made by other shifts or with another seed"


def add_stamp(scan: Volume, stamp: str) -> Volume:
    """Return the scan with a stamp in its header, and a hash of its voxels, because headers are copied to
    masks and edited scans.
    """
    import nibabel

    known = scan.header
    header = nibabel.Nifti1Header() if known is None else nibabel.Nifti1Header.from_header(known, check=False)
    header["descrip"], header["intent_name"] = stamp.encode(), voxel_hash(scan)[:PROOF].encode()
    return replace(scan, header=header)


def read_stamp(scan: Volume) -> str:
    """Return the stamp of a scan; "" if it has none, or if its voxels were changed after stamping."""
    if scan.header is None:
        return ""
    stamp, proof = (
        bytes(scan.header[key]).rstrip(b"\0").decode("latin-1") for key in ("descrip", "intent_name")
    )
    return stamp if stamp.startswith(f"{MADE} ") and proof == voxel_hash(scan)[:PROOF] else ""
