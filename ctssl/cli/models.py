"""`ctssl list`, `ctssl info`, `ctssl download` and `ctssl import`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctssl.zoo import ModelSpec


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `list`, `info`, `download` and `import`; `command(name, run, text)` is that of `ctssl.cli.main`."""
    sub = command("list", _list, "list the models")
    sub.add_argument("pattern", nargs="?", default="*", help="such as '*mim*'")
    sub = command("info", _info, "show what is known of a model, and where it comes from")
    sub.add_argument(
        "name",
        help="a name of the list, the folder of a model (fine-tuned, imported, downloaded), or a Hub "
        "repository owner/name, which is downloaded",
    )
    sub.add_argument("--revision", help="commit, tag or branch of a repository")
    sub = command(
        "download",
        _download,
        "download models into the cache, or as plain folders for a machine without a network",
    )
    sub.add_argument(
        "names", nargs="*", metavar="NAME", help="names of the list, or Hub repositories owner/name"
    )
    sub.add_argument("--all", action="store_true", help="all models of the package or the Hub")
    sub.add_argument(
        "--to",
        metavar="FOLDER",
        help="write FOLDER/NAME; CTSSL_MODELS=FOLDER then serves them, also elsewhere",
    )
    sub.add_argument("--revision", help="commit, tag or branch, of one repository")
    sub = command(
        "import",
        _import,
        "convert another project's checkpoint to a folder that every command takes as --model",
    )
    _import_arguments(sub)


def _list(args: argparse.Namespace) -> None:
    from ctssl.zoo import GAINS, USES, best_first, info, list_models

    names = best_first(list_models(args.pattern))
    if args.json:
        print(
            json.dumps(
                [{**asdict(info(name)), "gain": GAINS.get(name), "use": USES.get(name)} for name in names]
            )
        )
        return
    if not names:
        raise ValueError(f"no model matches {args.pattern!r}; `ctssl list` shows all")
    rows = [
        (
            s.name,
            s.kind,
            s.encoder,
            s.corpus,
            s.pretext,
            f"{GAINS[s.name]:+.3f}" if s.name in GAINS else "",
            f"{s.parameters / 1e6:.1f} M",
            s.licence,
            _use(s),
        )
        for s in map(info, names)
    ]
    rows.insert(
        0, ("name", "kind", "encoder", "corpus", "pretext", "gain", "parameters", "licence", "take it for")
    )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if any(name in GAINS for name in names):
        print(
            "\ngain: DSC over the same network from scratch, lung tumours of another collection, 50 labelled patients"
        )


def _use(spec: ModelSpec) -> str:
    """Say what a model is for, and whether it is missing from the package."""
    from ctssl.zoo import USES

    usual = "comparison (baseline only)" if spec.baseline_only else "comparison"
    return USES.get(spec.name, usual) + ("" if spec.in_package else "; not in the package")


def _info(args: argparse.Namespace) -> None:
    spec, origin = _known(args.name, args.revision)
    if args.json:
        print(json.dumps({**spec, "origin": origin}))
        return
    for key, value in spec.items():
        if key != "fingerprint":  # numbers for programs
            print(_plain(f"{key:13} {value if value not in (None, '') else '-'}"))
    unknown = (
        ""
        if origin
        else ": it is not on this machine; `ctssl download` fetches what is on the Hub, CTSSL_MODELS names a folder of models "
        "(model_cards of a checkout)"
        if origin is None
        else ": unknown"
    )
    print(f"\nwhere it comes from{unknown}")
    for key, value in (origin or {}).items():
        print(_plain(f"  {key:15} {value}"))
    revision = f", revision={args.revision!r}" if args.revision else ""
    print(
        _plain(
            f"\nload it: ctssl.{'load_segmenter' if spec['kind'] == 'segmenter' else 'load'}({args.name!r}{revision})"
        )
    )


def _known(name: str, revision: str | None) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Return what the model table or `config.json` says of a model, and its origin; None as the origin of a model of
    the table that is not on this machine."""
    from ctssl.files.names import REPOSITORY
    from ctssl.hub.lookup import find, open_model
    from ctssl.hub.provenance import origin
    from ctssl.zoo import MODELS, info

    if name in MODELS and revision is None:
        try:
            return asdict(info(name)), origin(find(name, offline=True))
        except FileNotFoundError:
            return asdict(info(name)), None
    served = Path(os.environ.get("CTSSL_MODELS") or os.devnull, name)
    if not (Path(name).expanduser().is_dir() or served.is_dir() or REPOSITORY.fullmatch(name) or revision):
        info(name)  # says which names are near
    folder = open_model(name, revision=revision)
    return folder.config, origin(folder.path)


def _plain(text: str) -> str:
    """Replace control characters by "?": files of strangers are printed here."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def _download(args: argparse.Namespace) -> None:
    from ctssl.hub.downloads import download
    from ctssl.hub.folder import bundled
    from ctssl.zoo import MODELS

    listed = sorted(name for name, spec in MODELS.items() if spec.in_package or spec.repo) if args.all else []
    names = [*args.names, *(name for name in listed if name not in args.names)]
    if not names:
        raise ValueError("which models? Give names of `ctssl list` or repositories owner/name, or --all")
    if args.revision and len(names) > 1:
        raise ValueError(
            f"--revision belongs to one repository, and there are {len(names)} names; download them one by one"
        )
    done: dict[str, str] = {}
    for name in names:
        folder = download(name, to=args.to, revision=args.revision)
        done[name] = str(folder)
        if not args.json:
            print(f"{name:24} {folder}" + ("  (came with the package)" if folder.parent == bundled() else ""))
    if args.json:
        print(json.dumps(done))
    elif args.to:
        print(
            f"\n{len(done)} verified. To use them, here or where you carry them: export CTSSL_MODELS={Path(args.to).resolve()}"
        )


def _import_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", help=".pt, .pth (opened in a process of its own, tensors only) or .safetensors")
    sub.add_argument(
        "--from",
        dest="family",
        help="smit, monai-swinunetr, monai-swinvit, monai-vit or timm-vit (default: told by the weights' names)",
    )
    sub.add_argument("--out", required=True, help="folder for the encoder")
    sub.add_argument(
        "--merging", choices=["1.4", "1.5", "v2"], help="of a MONAI Swin: before 1.5, since, or mergingv2"
    )
    sub.add_argument("--heads", type=int, metavar="N", help="attention heads of a ViT")
    sub.add_argument(
        "--grid", type=int, nargs=3, metavar=("X", "Y", "Z"), help="tokens of a ViT, if they are no cube"
    )
    sub.add_argument("--norm-eps", type=float, help="epsilon of a timm ViT's norms (default: 1e-6)")
    sub.add_argument(
        "--root", help="what stands before the encoder's keys, if the file holds several encoders"
    )
    sub.add_argument(
        "--spacing", type=float, metavar="MM", help="working spacing in mm (default: the family's)"
    )
    sub.add_argument(
        "--window-hu",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="window in HU, mapped to 0..1 (default: the family's)",
    )
    sub.add_argument("--licence", default="unknown: that of the source file", help="of the weights")
    sub.add_argument("--overwrite", action="store_true", help="replace a model in the folder")


def _import(args: argparse.Namespace) -> None:
    import ctssl

    done = ctssl.import_checkpoint(
        args.file,
        out=args.out,
        family=args.family,
        merging=args.merging,
        heads=args.heads,
        grid=tuple(args.grid) if args.grid else None,
        norm_eps=args.norm_eps,
        root=args.root,
        spacing_mm=args.spacing,
        window_hu=tuple(args.window_hu) if args.window_hu else None,
        licence=args.licence,
        overwrite=args.overwrite,
    )
    if args.json:
        print(
            json.dumps(
                {
                    "model": args.out,
                    "family": done.family,
                    "counts": done.counts,
                    "keys": done.keys,
                    "not_weights": done.skipped,
                }
            )
        )
        return
    told = [entry for entry in done.keys if entry["how"]]
    for how in dict.fromkeys(entry["how"] for entry in told):
        same = [entry for entry in told if entry["how"] == how]
        print(
            f"{same[0]['action']:9} {len(same):4}  {same[0]['key']}{' ...' if len(same) > 1 else ''}: {how}"
        )
    pre = done.spec.preprocess
    print(
        ", ".join(f"{count} {action}" for action, count in done.counts.items())
        + f"; every key in {args.out}/import.json"
    )
    print(
        f"scans are prepared at {pre.spacing_mm:g} mm, {pre.window_hu[0]:g} to {pre.window_hu[1]:g} HU; say otherwise with "
        "--spacing and --window-hu if the encoder was trained otherwise"
    )
    print(
        f"\n{args.out} is ready, a {done.family} encoder. Next: ctssl finetune DATA --out my-model --model {args.out}"
    )
