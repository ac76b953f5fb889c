"""The `ctssl` command: a thin layer over the functions of the package.

Exit codes: 0 done; 1 failed while working; 2 wrong arguments or input, with a line that says what to do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from dataclasses import asdict
from typing import Any

import ctssl
from ctssl.cli_models import add_commands as add_models
from ctssl.cli_shifts import add_commands


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(argv)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        args.run(args)
    except (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, ImportError) as error:
        print(f"ctssl {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, RuntimeError, MemoryError) as error:
        print(f"ctssl {args.command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nctssl {args.command}: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ctssl", description=ctssl.__doc__)
    parser.add_argument("--version", action="version", version=f"ctssl {ctssl.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print one JSON object for a program to read")
        sub.set_defaults(run=run)
        return sub

    add_models(command)
    sub = command("embed", _embed, "features of a scan, one vector")
    sub.add_argument("scan", help=".nii, .nii.gz or DICOM folder")
    sub.add_argument("out", nargs="?", help="file.npy (without it, the vector is printed)")
    sub.add_argument("--model", default="swin-wild-mim", help="name, folder or repository (default: %(default)s)")
    _common(sub)
    sub = command("segment", _segment, "a mask for a scan, or for every scan of a folder, on the scan's own grid")
    sub.add_argument("scan", help=".nii, .nii.gz or DICOM folder; or a folder of any of these")
    sub.add_argument(
        "out", help="OUT.nii.gz, or OUT.dcm (DICOM-SEG) for a DICOM series; or a folder, for a folder of scans"
    )
    sub.add_argument("--model", required=True, help="a segmenter: folder of `ctssl finetune`, name or repository")
    sub.add_argument("--overlay", metavar="PNG", help="also a picture of the mask on the scan")
    sub.add_argument(
        "--tta", action="store_true", help="average over all mirrorings: a little better, eight times slower"
    )
    sub.add_argument(
        "--max-memory", type=float, default=8.0, metavar="GB", help="that it may take (default: %(default)s)"
    )
    sub.add_argument("--probabilities", action="store_true", help="also a map of each label, OUT_LABEL.nii.gz")
    sub.add_argument("--resume", action="store_true", help="of a folder, leave out scans that have their mask")
    sub.add_argument("--shard", metavar="I/N", help="of a folder, only part I of N (from 0)")
    _common(sub)
    sub = command(
        "check", _check, "what is wrong with labelled scans, case by case, before anything is trained on them"
    )
    _data(sub)
    sub.add_argument("--model", help="also say which scans this model was pretrained on (exact copies)")
    sub = command("finetune", _finetune, "train a segmenter on labelled scans; hold cases out and report their DSC")
    _data(sub)
    sub.add_argument("--out", required=True, help="folder for the segmenter")
    sub.add_argument(
        "--model",
        default="swin-wild-mim",
        help="encoder: name, folder or repository; or a baseline: swin-scratch, vit-scratch, dynunet (default: %(default)s)",
    )
    sub.add_argument("--head", default="light", help="segmentation head (default: %(default)s)")
    sub.add_argument(
        "--hold-out", help="share of patients, or case names with commas (default: the table's column split, or 0.2)"
    )
    sub.add_argument("--folds", type=int, metavar="K", help="hold out one of K parts of the patients instead")
    sub.add_argument("--fold", type=int, metavar="I", help="which, from 0; without it all, each into OUT/foldI")
    sub.add_argument("--few-shot", type=int, metavar="N", help="train on N patients only")
    sub.add_argument("--spacing", type=float, metavar="MM", help="to work at (default: from the tumours' size)")
    sub.add_argument("--steps", type=int, help="training steps (default: 600)")
    sub.add_argument("--minutes", type=float, help="train for about so long instead")
    sub.add_argument("--freeze", choices=["encoder"], help="leave it as it is, train the head alone")
    sub.add_argument("--layer-decay", type=float, help="of the learning rate, a block (default: 1, none)")
    sub.add_argument("--ema", type=float, metavar="D", help="judge and keep an average of the weights with this decay")
    sub.add_argument(
        "--bf16", action="store_true", help="half precision on a CPU too (with AVX512_BF16 or AMX, for speed)"
    )
    sub.add_argument("--validation", type=float, metavar="SHARE",
                     help="of the training patients (of ten or more), to choose the best weights by (default: 0.1)")  # fmt: skip
    sub.add_argument(
        "--resume", action="store_true", help="insist on an unfinished training in OUT, which goes on anyway"
    )
    sub.add_argument("--batch", type=int, help="crops per step and device (default: 4, or 2 large ones)")
    sub.add_argument("--crop", type=int, help="voxels along each side of a crop (default: 64; 96 for large tumours)")
    sub.add_argument("--seed", type=int, help="default: 0")
    sub.add_argument("--shift-augment", type=int, metavar="N", help="train on N copies of each scan too, as another "
                     "protocol or kernel would have given it (default: 0)")  # fmt: skip
    sub.add_argument(
        "--from-scratch", action="store_true", help="forget the pretrained weights, to see what they are worth"
    )
    sub.add_argument("--overwrite", action="store_true")
    sub.add_argument("--device", default="auto")
    sub = command("evaluate", _evaluate, "masks against the truth: per case, per stratum, and against other masks")
    sub.add_argument("predictions", help="folder of masks")
    sub.add_argument("labels", help="folder of true masks with the same names")
    sub.add_argument("--table", help="CSV with a row per case (id, and what --by names)")
    sub.add_argument("--by", default="", help="columns of the table, with commas: a stratum for each value")
    sub.add_argument("--against", help="folder of other masks for the same cases: paired tests")
    sub.add_argument("--tolerance", type=float, default=2.0, help="mm, for the surface Dice (default: %(default)s)")
    sub.add_argument("--out", help="folder for cases.csv, report.json, report.md and pictures")
    sub = command("compare", _compare, "which blocks of two models see alike (CKA): a heat map")
    sub.add_argument("first", help="encoder or segmenter: name, folder or repository")
    sub.add_argument("second")
    sub.add_argument("--data", required=True, nargs="+", help="scans: files, or a folder of .nii and .nii.gz")
    sub.add_argument("--out", required=True, help="OUT.png; the numbers go beside it, as .json")
    sub.add_argument("--crops", type=int, default=256, help="fewer make an unsteady picture (default: %(default)s)")
    sub.add_argument("--spacing", type=float, metavar="MM", help="at which both see the scans (default: each its own)")
    sub.add_argument(
        "--shift", metavar="NAME:SEVERITY", help="the second sees the scans shifted, such as kernel_sharp:3"
    )
    sub.add_argument("--seed", type=int, default=0, help="of the crops and the shift (default: %(default)s)")
    sub.add_argument("--overwrite", action="store_true")
    sub = command("import", _import, "another project's checkpoint into a folder that everything here takes as --model")
    _import_arguments(sub)
    add_commands(command)
    sub = command("demo", _demo, "the first five minutes: a phantom (or your scan), its features, a mask")
    sub.add_argument("scan", nargs="?", help="your own scan instead of the phantom")
    sub.add_argument("--model", help="a segmenter, for a mask")
    sub.add_argument("--out", default="ctssl-demo", help="folder (default: %(default)s)")
    return parser


def _import_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", help=".pt, .pth (opened in a process of its own, tensors only) or .safetensors")
    sub.add_argument(
        "--from",
        dest="family",
        help="smit, monai-swinunetr, monai-swinvit, monai-vit or timm-vit (default: told by the weights' names)",
    )
    sub.add_argument("--out", required=True, help="folder for the encoder")
    sub.add_argument("--merging", choices=["1.4", "1.5", "v2"], help="of a MONAI Swin: before 1.5, since, or mergingv2")
    sub.add_argument("--heads", type=int, metavar="N", help="attention heads of a ViT")
    sub.add_argument("--grid", type=int, nargs=3, metavar=("X", "Y", "Z"), help="tokens of a ViT, if they are no cube")
    sub.add_argument("--norm-eps", type=float, help="epsilon of a timm ViT's norms (default: 1e-6)")
    sub.add_argument("--root", help="what stands before the encoder's keys, if the file holds several encoders")
    sub.add_argument("--spacing", type=float, metavar="MM", help="that it was trained at (default: the family's)")
    sub.add_argument("--window-hu", type=float, nargs=2, metavar=("LOW", "HIGH"), help="likewise, mapped to 0..1")
    sub.add_argument("--licence", default="unknown: that of the source file", help="of the weights")
    sub.add_argument("--overwrite", action="store_true")


def _data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "data", nargs="?", help="folder with images/ and labels/, of nnU-Net or Decathlon, of DICOM patients, or a CSV"
    )
    sub.add_argument("--images", help="folder of scans, with --labels instead of DATA")
    sub.add_argument("--labels", help="folder of masks with the names of the scans")
    sub.add_argument("--roi", help="the structure to take, when an RTSTRUCT or SEG holds several")


def _common(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--series", help="SeriesInstanceUID, when a DICOM folder holds several")
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")


def _embed(args: argparse.Namespace) -> None:
    from io import BytesIO
    from pathlib import Path

    import numpy as np

    from ctssl.writing import write_whole

    if args.out:
        _free(args.out, args.overwrite, ".npy")
    encoder = ctssl.load(args.model, device=args.device)
    vector = encoder.embed(ctssl.read(args.scan, series=args.series)).numpy()
    if args.out:
        content = BytesIO()
        np.save(content, vector)
        write_whole(Path(args.out), content.getvalue())
    if args.json:
        print(json.dumps({"model": args.model, "scan": args.scan, "out": args.out, "embedding": vector.tolist()}))
    elif args.out:
        print(f"{len(vector)} features of {args.scan} in {args.out}")
    else:
        print(" ".join(f"{v:.6g}" for v in vector))


def _segment(args: argparse.Namespace) -> None:
    from pathlib import Path

    if not args.out.endswith((".nii", ".nii.gz", ".dcm")) and _scans_of(Path(args.scan)):
        _segment_folder(args)
        return
    if args.resume or args.shard:
        raise ValueError("--resume and --shard are for a folder of scans and a folder to write to")
    from ctssl.inference import write_mask

    _free(args.out, args.overwrite, ".nii", ".nii.gz", ".dcm")
    if args.overlay:
        _free(args.overlay, args.overwrite, ".png")
    if args.out.endswith(".dcm") and not Path(args.scan).is_dir():
        raise ValueError(f"{args.out} would be a DICOM-SEG, which needs the folder of a DICOM series, not {args.scan}")
    model = ctssl.load_segmenter(args.model, device=args.device)
    scan = ctssl.read(args.scan, series=args.series)
    if args.out.endswith(".dcm"):
        _segment_dicom(args, model, scan)
        return
    mask, facts = write_mask(model, scan, Path(args.out), tta=args.tta, max_memory_gb=args.max_memory,
                             with_probabilities=args.probabilities, overwrite=args.overwrite, progress=not args.json)  # fmt: skip
    if args.overlay:
        from ctssl.pictures import overlay

        overlay(scan, mask, args.overlay, title=f"{scan.name}: {args.model}")
    if args.json:
        print(json.dumps({"mask": args.out, "overlay": args.overlay, "volume_ml": facts["volume_ml"]}))
        return
    found = ", ".join(
        f"{name} {value:.1f} ml" if value else f"no {name} found" for name, value in facts["volume_ml"].items()
    )
    print(f"{args.out}: {found}" + (f"; picture {args.overlay}" if args.overlay else ""))


def _segment_dicom(args: argparse.Namespace, model: Any, scan: Any) -> None:
    from pathlib import Path

    from ctssl.dicom_seg import write_seg

    if args.probabilities:
        raise ValueError("--probabilities are NIfTI files; write the mask as OUT.nii.gz too")
    mask = model.segment(scan, tta=args.tta, max_memory_gb=args.max_memory, progress=not args.json)
    known = (model.spec.name, model.spec.sha256) if model.spec else ("", "")
    write_seg(mask, model.labels, Path(args.scan), Path(args.out), series=args.series, model=known[0], sha256=known[1],
              overwrite=args.overwrite)  # fmt: skip
    print(
        json.dumps({"mask": args.out}) if args.json else f"{args.out}: DICOM-SEG of {', '.join(model.labels.values())}"
    )


def _segment_folder(args: argparse.Namespace) -> None:
    from pathlib import Path

    from ctssl.inference import segment_all

    if args.overlay:
        raise ValueError("--overlay is for one scan")
    scans, out = _scans_of(Path(args.scan)), Path(args.out)
    if args.shard:
        part, _, parts = args.shard.partition("/")
        if not part.isdigit() or not parts.isdigit() or not int(part) < int(parts):
            raise ValueError(f"--shard {args.shard}: I/N with I from 0 to N-1, such as 0/4")
        scans = {name: scans[name] for name in sorted(scans)[int(part) :: int(parts)]}
    there = [name for name in scans if (out / f"{name}.nii.gz").exists()]
    if there and not args.resume and not args.overwrite:
        raise FileExistsError(f"{out} holds masks of {len(there)} of these scans; add --resume or --overwrite")
    model = ctssl.load_segmenter(args.model, device=args.device)
    failed = segment_all(model, scans, out, tta=args.tta, max_memory_gb=args.max_memory,
                         with_probabilities=args.probabilities, resume=args.resume, overwrite=args.overwrite,
                         progress=not args.json)  # fmt: skip
    if args.json:
        print(json.dumps({"out": args.out, "scans": len(scans), "failed": failed}))
    else:
        print(f"{len(scans) - len(failed)} of {len(scans)} scans have their mask in {out}")
    if failed:
        raise RuntimeError(f"{len(failed)} scans failed:\n" + "\n".join(f"  {n}: {why}" for n, why in failed.items()))


def _scans_of(folder: Any) -> dict[str, Any]:
    """The NIfTI files of a folder and its folders (DICOM series) by name; empty for a file or the folder of one series."""
    if not folder.is_dir():
        return {}
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() or path.name.endswith((".nii", ".nii.gz")):
            name = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_0000")
            if name in found:
                raise ValueError(
                    f"{path.name} and {found[name].name} would both be written as {name}.nii.gz; rename one"
                )
            found[name] = path
    return found


def _check(args: argparse.Namespace) -> None:
    from ctssl.datasets import find_cases, problems

    dataset = find_cases(args.data, images=args.images, labels=args.labels, roi=args.roi)
    found = problems(dataset, model=args.model, progress=not args.json)
    errors = sum(problem.level == "error" for problem in found)
    if args.json:
        print(json.dumps({"cases": [case.name for case in dataset.cases], "problems": [asdict(p) for p in found]}))
    else:
        for problem in found:
            print(f"{problem.level:8} {problem.case}: {problem.message}")
        print(f"{len(dataset.cases)} cases, {errors} errors, {len(found) - errors} warnings")
    if errors:
        raise ValueError(f"{errors} errors; ctssl finetune would refuse this data")


def _finetune(args: argparse.Namespace) -> None:
    from pathlib import Path

    from ctssl.fitting import Settings

    if args.fold is not None and args.folds is None:
        raise ValueError("--fold needs --folds")
    if args.resume and not any(Path(args.out).glob("**/.unfinished/state.json")):
        raise FileNotFoundError(f"{args.out} holds no unfinished training; leave out --resume to start one")
    keys = ("steps", "minutes", "batch", "crop", "seed", "layer_decay", "ema", "validation", "shift_augment")
    chosen = {key: getattr(args, key) for key in keys}
    settings = Settings(
        **{key: value for key, value in chosen.items() if value is not None},
        freeze=args.freeze is not None, bf16=args.bf16,
    )  # fmt: skip
    every = args.folds is not None and args.fold is None
    wanted = list(range(args.folds or 0)) if every else [args.fold or 0]
    reports = [
        ctssl.finetune(
            args.data, images=args.images, labels=args.labels, roi=args.roi, model=args.model, head=args.head,
            out=Path(args.out) / f"fold{fold}" if every else args.out, hold_out=_hold_out(args.hold_out), folds=args.folds,
            fold=fold, few_shot=args.few_shot, spacing_mm=args.spacing, settings=settings, from_scratch=args.from_scratch,
            device=args.device, overwrite=args.overwrite, progress=not args.json,
        )
        for fold in wanted
    ]  # fmt: skip
    if args.json:
        results = [{"model": str(report.folder), "held_out": report.held_out,
                    "mean_dsc": report.mean_dsc if report.held_out else None, "train": report.train}
                   for report in reports]  # fmt: skip
        print(json.dumps(results if every else results[0]))
        return
    for report in reports:
        for case, scores in report.held_out.items():
            print(f"{case:24} " + "  ".join(f"{name} DSC {value:.3f}" for name, value in scores.items()))
        if report.held_out:
            print(f"{'mean of ' + str(len(report.held_out)) + ' held-out cases':24} DSC {report.mean_dsc:.3f}")
    if every:
        print(
            f"{'mean of ' + str(len(reports)) + ' folds':24} DSC {sum(r.mean_dsc for r in reports) / len(reports):.3f}"
        )
    print(f"\n{reports[0].folder} is ready. Next: ctssl segment SCAN OUT.nii.gz --model {reports[0].folder}")


def _hold_out(text: str | None) -> float | list[str] | None:
    """A share, or case names with commas between them."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return [name.strip() for name in (text or "").split(",") if name.strip()]


def _evaluate(args: argparse.Namespace) -> None:
    from pathlib import Path

    if args.out and Path(args.out).exists() and (not Path(args.out).is_dir() or any(Path(args.out).iterdir())):
        raise FileExistsError(f"{args.out} exists and is not empty; choose another folder")
    by = tuple(column.strip() for column in args.by.split(",") if column.strip())
    found = ctssl.evaluate(args.predictions, args.labels, table=args.table, by=by, against=args.against,
                           tolerance_mm=args.tolerance, progress=not args.json)  # fmt: skip
    if args.out:
        found.save(args.out)
    if args.json:
        print(json.dumps(found.plain()))
        return
    print(found.markdown() + (f"\n{args.out}: cases.csv, report.json, report.md" if args.out else ""))


def _compare(args: argparse.Namespace) -> None:
    from pathlib import Path

    from ctssl.hub import find, read_config
    from ctssl.similarity import CELLS, compare
    from ctssl.writing import write_whole

    def label(source: str) -> str:
        return Path(source).name

    numbers = str(Path(args.out).with_suffix(".json"))
    _free(args.out, args.overwrite, ".png")
    _free(numbers, args.overwrite, ".json")
    scans: list[Path] = []
    for source in map(Path, args.data):
        inside = sorted(p for p in source.iterdir() if p.name.endswith((".nii", ".nii.gz"))) if source.is_dir() else []
        scans += inside or [source]
    others = _shifted(scans, args.shift, args.seed) if args.shift else None
    models = [ctssl.load(name) if read_config(find(name))["kind"] == "encoder" else ctssl.load_segmenter(name)
              for name in (args.first, args.second)]  # fmt: skip
    found = compare(models[0], models[1], list(scans), other_scans=others, crops=args.crops, spacing_mm=args.spacing,
                    seed=args.seed, names=(label(args.first), label(args.second) + (f", {args.shift}" if args.shift else "")),
                    progress=not args.json)  # fmt: skip
    found.picture(args.out)
    result = {"blocks": found.matrix.round(5).tolist(), "crops": found.crops, "models": [args.first, args.second],
              "shift": args.shift, "pooling": f"mean over a grid of {CELLS} x {CELLS} x {CELLS} cells"}  # fmt: skip
    write_whole(Path(numbers), json.dumps(result) + "\n")
    if args.json:
        print(json.dumps(result))
        return
    count = min(found.matrix.shape)
    print("block by block: " + "  ".join(f"{found.matrix[i, i]:.2f}" for i in range(count)))
    print(f"{args.out}, {numbers}")


def _import(args: argparse.Namespace) -> None:
    done = ctssl.import_checkpoint(
        args.file, out=args.out, family=args.family, merging=args.merging, heads=args.heads,
        grid=tuple(args.grid) if args.grid else None, norm_eps=args.norm_eps, root=args.root, spacing_mm=args.spacing,
        window_hu=tuple(args.window_hu) if args.window_hu else None, licence=args.licence, overwrite=args.overwrite,
    )  # fmt: skip
    if args.json:
        print(json.dumps({"model": args.out, "family": done.family, "counts": done.counts, "keys": done.keys,
                          "not_weights": done.skipped}))  # fmt: skip
        return
    told = [entry for entry in done.keys if entry["how"]]
    for how in dict.fromkeys(entry["how"] for entry in told):
        same = [entry for entry in told if entry["how"] == how]
        print(f"{same[0]['action']:9} {len(same):4}  {same[0]['key']}{' ...' if len(same) > 1 else ''}: {how}")
    pre = done.spec.preprocess
    print(
        ", ".join(f"{count} {action}" for action, count in done.counts.items())
        + f"; every key in {args.out}/import.json"
    )
    print(f"scans are prepared at {pre.spacing_mm:g} mm, {pre.window_hu[0]:g} to {pre.window_hu[1]:g} HU; say otherwise with "
          "--spacing and --window-hu if the encoder was trained otherwise")  # fmt: skip
    print(
        f"\n{args.out} is ready, a {done.family} encoder. Next: ctssl finetune DATA --out my-model --model {args.out}"
    )


def _shifted(scans: list[Any], text: str, seed: int) -> list[Any]:
    """The scans under a shift that is written NAME:SEVERITY."""
    from ctssl.shifts import check_shift, shift

    name, _, severity = text.partition(":")
    check_shift(name, int(severity) if severity.isdigit() else 0)
    return [shift(ctssl.read(scan), name, severity=int(severity), seed=seed) for scan in scans]


def _demo(args: argparse.Namespace) -> None:
    from ctssl.demo import demo

    written = demo(args.scan, out=args.out, model=args.model, progress=not args.json)
    if args.json:
        print(json.dumps(written))
        return
    if "scan" in written:
        print(f"scan      {written['scan']}  (a phantom: chest, known HU; its tumour: {written['truth']})")
    print(f"features  {written['features']}  (three principal components as colours; {written['encoder']})")
    if "mask" in written:
        print(f"mask      {written['mask']}  {written['volume_ml']} ml\noverlay   {written['overlay']}")
    if "scan" in written:
        print("\nThe phantom shows that everything works, not how accurate it is.")
    print("\nNext:\n  ctssl embed SCAN.nii.gz features.npy            one vector for your own scan")
    print("  ctssl finetune DATA --out my-model              a segmenter from your labels (DATA/images, DATA/labels)")
    print("  ctssl segment SCAN.nii.gz MASK.nii.gz --model my-model")


def _free(path: str, overwrite: bool, *endings: str) -> None:
    """Complain about an output before hours of work, not after."""
    from pathlib import Path

    if not path.endswith(endings):
        raise ValueError(f"cannot write {path}: its name must end in {' or '.join(endings)}")
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name, or add --overwrite")
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {Path(path).parent} to write {Path(path).name} in; make it first")


if __name__ == "__main__":
    sys.exit(main())
