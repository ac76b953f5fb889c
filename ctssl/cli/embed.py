"""`ctssl embed`: features of a scan, of its lesions, of a folder of scans, or of every place."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ctssl.cli.common import add_memory, add_speed, check_output, common, raise_if_failed
from ctssl.zoo import DEFAULT

Row = dict[str, Any]


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `embed`; `command(name, run, text)` is that of `ctssl.cli.main`."""
    sub = command(
        "embed", _embed, "compute the features of a scan, of its lesions, or of every scan of a folder"
    )
    sub.add_argument("scan", help=".nii, .nii.gz or DICOM folder; or a folder of any of these")
    sub.add_argument(
        "out",
        nargs="?",
        help="FILE.npy for one vector, FILE.csv for a table, FILE.nii.gz for --dense (default: print the vector)",
    )
    sub.add_argument(
        "--model", default=DEFAULT, help="encoder: name, folder or repository (default: %(default)s)"
    )
    sub.add_argument(
        "--mask",
        help="mask of the scan, or folder of masks: one row per lesion, the mean of every map over it",
    )
    sub.add_argument(
        "--by",
        choices=["lesion", "label"],
        default="lesion",
        help="a row per connected lesion, or per label (default: %(default)s)",
    )
    sub.add_argument(
        "--dense", action="store_true", help="write a whole map, a 4D image on the grid of the map"
    )
    sub.add_argument(
        "--map", type=int, default=-1, metavar="N", help="map of --dense, from 0 (default: the deepest)"
    )
    add_memory(sub)
    add_speed(sub, "features")
    common(sub)
    sub = command("similar", _similar, "find the scans or lesions whose features are most alike")
    sub.add_argument("table", help="table of `ctssl embed` to search")
    sub.add_argument(
        "queries",
        nargs="?",
        help="table of what to look for (default: every row of the first, among other scans)",
    )
    sub.add_argument(
        "--top", type=int, default=5, metavar="N", help="neighbours of each (default: %(default)s)"
    )
    sub.add_argument("--out", metavar="FILE.csv", help="write them as a table (default: print it)")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")


def _similar(args: argparse.Namespace) -> None:
    from ctssl.files.atomic import check_apart, write_whole
    from ctssl.files.text import csv_text
    from ctssl.inference.neighbours import Embeddings, nearest

    if args.top < 1:
        raise ValueError(f"invalid --top {args.top} (must be at least 1)")
    if args.out:
        check_output(args.out, args.overwrite, ".csv")
        check_apart([Path(args.out)], [Path(file) for file in (args.table, args.queries) if file])
    queries = Embeddings.read(Path(args.queries)) if args.queries else None
    rows = nearest(Embeddings.read(Path(args.table)), queries, top=args.top)
    if args.out:
        write_whole(Path(args.out), csv_text(rows))
    if args.json:
        print(json.dumps({"rows": rows}))
    else:
        print(f"{len(rows)} rows in {args.out}" if args.out else csv_text(rows), end="\n" if args.out else "")


def _embed(args: argparse.Namespace) -> None:
    import torch

    import ctssl
    from ctssl.compiling import compile_blocks
    from ctssl.datasets.scans import list_scans
    from ctssl.devices import warn_of_slow_bf16
    from ctssl.files.atomic import check_apart
    from ctssl.inference.features import blocks_of

    folder = Path(args.scan)
    scans = list_scans(folder, series=True) if folder.is_dir() else {}
    kind = ".nii.gz" if args.dense else ".csv" if args.mask or scans else ".npy"
    if args.dense and (args.mask or scans or not args.out):
        raise ValueError("--dense takes one scan, no mask, and a file OUT.nii.gz")
    if scans and not args.out:
        raise ValueError("a folder of scans needs a table to write: OUT.csv")
    if args.out:
        check_output(args.out, args.overwrite, kind)
        inputs = [*scans.values()] or [folder]
        check_apart([Path(args.out)], [*inputs, *([Path(args.mask)] if args.mask else [])])
    encoder = ctssl.load(args.model, device=args.device)
    blocks_of(encoder)  # which nnU-Net's network has not
    if args.compile:
        compile_blocks(encoder)
    device = next(encoder.parameters()).device
    if args.bf16:
        warn_of_slow_bf16(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
        if args.dense:
            _write_map(encoder, args)
        elif kind == ".csv":
            _write_rows(encoder, scans, args)
        else:
            _write_vector(encoder, args)


def _write_vector(encoder: Any, args: argparse.Namespace) -> None:
    """Embed one scan as one vector, and write or print it."""
    from io import BytesIO

    import numpy as np

    from ctssl.files.atomic import write_whole
    from ctssl.inference.features import embed

    scan = _source(args.scan, args.series)
    vector = embed(encoder, scan, max_memory_gb=args.max_memory, progress=not args.json).cpu().numpy()
    if args.out:
        content = BytesIO()
        np.save(content, vector)
        write_whole(Path(args.out), content.getvalue())
    if args.json:
        told = {"model": args.model, "scan": args.scan, "out": args.out, "embedding": vector.tolist()}
        print(json.dumps(told))
    elif args.out:
        print(f"{len(vector)} features of {args.scan} in {args.out}")
    else:
        print(" ".join(f"{v:.6g}" for v in vector))


def _write_rows(encoder: Any, scans: dict[str, Path], args: argparse.Namespace) -> None:
    """Write or print a table with a row for each scan, or each lesion. A scan that fails does not stop the others."""
    from tqdm import tqdm

    from ctssl.datasets.scans import check_masks, require_scans, stem
    from ctssl.files.atomic import write_whole
    from ctssl.files.text import csv_text

    jobs: dict[str, tuple[Path, Path | None]] = {name: (path, None) for name, path in scans.items()}
    if args.mask and scans:
        masks = require_scans(Path(args.mask), unlabelled=False)
        check_masks(scans, masks, Path(args.scan), Path(args.mask))
        jobs = {name: (path, masks[name]) for name, path in scans.items()}
    jobs = jobs or {stem(Path(args.scan)): (Path(args.scan), Path(args.mask))}
    rows, failed, empty = [], {}, []
    model = f"{encoder.spec.name} sha256:{encoder.spec.sha256[:12]}"
    for name, (scan, mask) in tqdm(jobs.items(), desc="scans", disable=args.json or len(jobs) < 2):
        try:
            mine = [{"scan": name, "model": model, **row} for row in _rows(encoder, scan, mask, args)]
        except (ValueError, OSError) as error:
            if len(jobs) == 1:
                raise
            failed[name] = str(error)
        else:
            rows += mine
            empty += [] if mine else [name]
    if not rows and not failed:
        raise ValueError(
            f"{args.mask}: the masks are empty, so there is no lesion to embed; nothing was written"
        )
    if args.out and rows:
        write_whole(Path(args.out), csv_text(rows))
    if empty:
        print(
            f"warning: no row for {len(empty)} scans whose masks are empty: {', '.join(empty)}",
            file=sys.stderr,
        )
    if args.json:
        told = {"model": args.model, "out": args.out, "rows": rows, "failed": failed, "empty": empty}
        print(json.dumps(told))
    elif args.out and not rows:
        print(f"nothing was written to {args.out}")
    else:
        print(f"{len(rows)} rows in {args.out}" if args.out else csv_text(rows), end="\n" if args.out else "")
    raise_if_failed(failed)


def _rows(encoder: Any, scan: Path, mask: Path | None, args: argparse.Namespace) -> Iterator[Row]:
    from ctssl.inference.features import embed
    from ctssl.inference.lesions import embed_lesions

    source = _source(scan, args.series)
    if mask is None:
        yield _numbered(embed(encoder, source, max_memory_gb=args.max_memory).tolist())
        return
    for lesion in embed_lesions(encoder, source, mask, by=args.by, max_memory_gb=args.max_memory):
        place = dict(zip(("x_mm", "y_mm", "z_mm"), (round(c, 2) for c in lesion.centre_mm), strict=True))
        facts = {
            "label": lesion.label,
            "lesion": lesion.number,
            "volume_ml": round(lesion.volume_ml, 4),
            **place,
        }
        yield facts | _numbered(lesion.vector.tolist())


def _source(scan: str | Path, series: str | None) -> Any:
    """Return what to embed: the path, or the series of a folder that holds several."""
    import ctssl

    return scan if series is None else ctssl.read(scan, series=series)


def _numbered(vector: list[float]) -> Row:
    return {f"f{number}": float(f"{value:.7g}") for number, value in enumerate(vector)}


def _write_map(encoder: Any, args: argparse.Namespace) -> None:
    """Write all channels of one feature map as a 4D NIfTI image."""
    import nibabel
    import numpy as np

    from ctssl.files.atomic import write_whole
    from ctssl.inference.features import dense

    count = len(encoder.strides)
    if not -count <= args.map < count:
        raise ValueError(f"--map {args.map}: this encoder has {count} maps, 0 (finest) to {count - 1}")
    scan = _source(args.scan, args.series)
    array, affine = dense(encoder, scan, max_memory_gb=args.max_memory, progress=not args.json)[args.map]
    image = nibabel.Nifti1Image(np.moveaxis(array, 0, -1), affine)
    image.header.set_xyzt_units("mm")
    write_whole(Path(args.out), lambda part: nibabel.save(image, part))
    size = " x ".join(str(n) for n in array.shape[1:])
    if args.json:
        print(
            json.dumps({"model": args.model, "scan": args.scan, "out": args.out, "shape": list(image.shape)})
        )
    else:
        print(
            f"{len(array)} channels of {size} places, {encoder.strides[args.map]} voxels apart, in {args.out}"
        )
