"""The `ctssl` command: a thin layer over the functions of the package.

Exit codes: 0 done; 1 failed while working; 2 wrong arguments or input, with a line that says what to do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from typing import Any

import ctssl
from ctssl.cli import choose, embed, export, judge, models, nnunet, segment, shifts, train


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser(argv[0] if argv else "").parse_args(argv)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        args.run(args)
    except (
        ValueError,
        TypeError,
        FileNotFoundError,
        FileExistsError,
        NotADirectoryError,
        ImportError,
    ) as error:
        print(f"ctssl {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, RuntimeError, MemoryError) as error:
        print(f"ctssl {args.command}: {_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\nctssl {args.command}: {error if error.args else 'stopped'}", file=sys.stderr)
        return getattr(error, "code", 130)
    return 0


def _words(error: BaseException) -> str:
    """Return the message for an error: advice where a path may not be read or written, otherwise its type and text."""
    if isinstance(error, PermissionError) and error.filename:
        path = str(error.filename)
        place = os.path.dirname(path) if ".part-" in path else path
        return f"you may not read or write {place or '.'}; choose another place, or have it opened to you"
    return f"{type(error).__name__}: {error}"


def _parser(chosen: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ctssl", description=ctssl.__doc__)
    parser.add_argument("--version", action="version", version=f"ctssl {ctssl.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print one JSON object for a program to read")
        sub.set_defaults(run=run)
        return sub

    models.add_commands(command)
    for part in (embed, segment, train, choose, judge, export, nnunet):
        part.add_commands(command)
    shifts.add_commands(command, chosen)
    sub = command("demo", _demo, "try ctssl: a phantom (or your scan), its features, a mask")
    sub.add_argument("scan", nargs="?", help="your own scan instead of the phantom")
    sub.add_argument("--model", help="a segmenter, for a mask")
    sub.add_argument("--out", default="ctssl-demo", help="folder (default: %(default)s)")
    sub.add_argument("--series", help="SeriesInstanceUID, if a DICOM folder holds several")
    return parser


def _demo(args: argparse.Namespace) -> None:
    from ctssl.demo import demo

    written = demo(args.scan, out=args.out, model=args.model, series=args.series, progress=not args.json)
    if args.json:
        print(json.dumps(written))
        return
    if "scan" in written:
        print(f"scan      {written['scan']}  (a phantom: chest, known HU; its tumour: {written['truth']})")
    print(f"features  {written['features']}  (three principal components as colours; {written['encoder']})")
    if "mask" in written:
        volumes = ", ".join(f"{name} {ml:g} ml" for name, ml in written["volume_ml"].items())
        volumes += f", DSC {written['dsc']:g}" if "dsc" in written else ""
        data = written["trained_on"].split(";")[0]  # the first of its sources
        trained = f", which was trained on {data}" if data else ""
        print(f"mask      {written['mask']}  ({volumes}; by {written['segmenter']}{trained})")
        print(f"overlay   {written['overlay']}")
    if "scan" in written:
        print("\nThe phantom shows that everything works, not how accurate it is.")
    print("\nNext:\n  ctssl embed SCAN.nii.gz features.npy            one vector for your own scan")
    print(
        "  ctssl finetune DATA --out my-model              a segmenter from your labels (DATA/images, DATA/labels)"
    )
    print("  ctssl segment SCAN.nii.gz MASK.nii.gz --model my-model")
