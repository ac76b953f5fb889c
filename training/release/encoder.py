"""Turn a finished pretraining into a model folder: `python -m training.release.encoder swin_wild_mim [--out
runs/swin_wild_mim]`.

Writes `model_cards/<name>/` (weights in fp16, config with the feature fingerprint, card, training.json,
hashes of the scans) and prints the entry for `ctssl/zoo.py`. `--card` writes only the card again, from the
existing files, `--seen` only the hashes. `--full-state FILE` writes the whole task (heads, teacher, mask
token) as safetensors instead, also from a folder of `training.pretrain --data`: `training.pretrain ... --init
FILE` continues from it.
"""

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctssl.datasets.seen import SEEN
from ctssl.demo import picture_features
from ctssl.files.weights import write_weights
from ctssl.hub.client import CONFIG
from ctssl.hub.folder import read_config, write_folder
from ctssl.hub.provenance import facts
from ctssl.loading import load
from ctssl.phantom import phantom
from ctssl.zoo import MODELS, SCANS, ModelSpec
from training import checkpoints, log
from training.data.cache import cache_folder, prepare_corpus
from training.data.corpora import NAMES, data_folder, provenance
from training.data.loader import Places, Samples, loader
from training.data.manifest import find_scans
from training.data.seen import seen
from training.pretrain import build, exported
from training.recipe import Run, find_run
from training.release.card import CARDS, card, strictest
from training.release.fingerprint import fingerprint
from training.release.segmenter import entry as segmenter_entry

FAMILY = {"wild46": "wild", "lung": "self"}  # corpora that models are named after


def load_finished(run: Run, out: Path) -> tuple[Any, dict[str, Any]]:
    """Return the task of a finished run and its last checkpoint. Exits if the run is not finished."""
    state = checkpoints.load_latest(out, run)
    if state is None:
        raise SystemExit(f"no checkpoint in {out}; run `python -m training.pretrain` first")
    if state["step"] < run.steps:
        raise SystemExit(f"{out} is at step {state['step']} of {run.steps}; finish the run first")
    task = build(run)
    task.load_state_dict(state["task"])
    return task, state


def export(run: Run, out: Path, cards: Path = CARDS) -> Path:
    """Write the model folder of a finished run."""
    if run.init and run.init not in MODELS:
        raise SystemExit(
            f"the starting weights {run.init} of run {run.name} are not in the model table, so their "
            "scans and licence are unknown; publish that model first, and start from its name"
        )
    task, state = load_finished(run, out)
    encoder: Any = task.encoder.eval()
    before = build(run).encoder.state_dict()
    untrained = [key for key, value in encoder.state_dict().items() if torch.equal(value, before[key])]
    for p in task.parameters():
        p.data = p.data.half().float()  # rounded to fp16, so that users get the same fingerprint
    encoder.spec = ModelSpec(
        run.name,
        "encoder",
        run.encoder,
        preprocess=run.preprocess,
        corpus=trained_on(run),
        pretext=run.task,
        licence=strictest(scans_of(run)).upper(),
        data=SCANS.get(run.corpus) or SCANS.get(trained_on(run), ""),
    )
    model, config = exported(task, run.name)
    config |= {"untrained": untrained, "fingerprint": fingerprint(encoder)}
    samples = run.steps * run.batch * run.accumulate * state["world"]
    history = {
        "command": command_of(run),
        "run": json.loads(checkpoints.settings(run)),
        "samples": samples,
        "hours": round(state["seconds"] / 3600, 3),
        "device": state["device"],
        "processes": state["world"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "curve": log.thin(log.read(out / "log.jsonl")),
        "unseen": unseen(task, run, out),
        "scans": scans_of(run),
    }
    corpus = prepare_corpus(find_scans(run.corpus), run.preprocess, cache_folder(out))
    hashes = seen(run, corpus)
    metadata = facts(
        recipe=history["run"],
        manifest=json.loads(hashes)["voxels"],
        parent=run.init,
        pretext=run.task,
        samples=samples,
        licence=encoder.spec.licence,
    )
    folder = write_folder(
        model,
        cards / run.name,
        config,
        half=True,
        overwrite=True,
        metadata=metadata,
        extra={"training.json": json.dumps(history, indent=1) + "\n", SEEN: hashes},
    )
    write_card(folder)
    return folder


def command_of(run: Run) -> str:
    """Return the command that trains a run, with what differs from its file in `training/runs`."""
    name = run.name.replace("-", "_")
    try:
        recipe = find_run(name)
    except SystemExit:
        return f"python -m training.pretrain {name}"
    now, usual = (json.loads(checkpoints.settings(one)) for one in (run, recipe))
    changed = [f"{key}={getattr(run, key)!r}" for key in now if now[key] != usual[key]]
    return f"python -m training.pretrain {name}" + (f" --set {' '.join(changed)}" if changed else "")


def trained_on(run: Run) -> str:
    """Return the corpus of a run, preceded by that of its starting weights if that is another: "wild-self"."""
    own, before = FAMILY.get(run.corpus, run.corpus), MODELS[run.init].corpus if run.init in MODELS else ""
    return f"{before}-{own}" if before not in ("", own) else own


def scans_of(run: Run) -> list[dict[str, Any]]:
    """Return the scans that the encoder has seen, including those of its starting weights."""
    rows = provenance(run.corpus)
    parent = CARDS / run.init / "training.json"  # missing if it started from random weights
    if parent.is_file():
        parents = json.loads(parent.read_text())["scans"]
        rows += [row for row in parents if row not in rows]
    return rows


@torch.inference_mode()
def unseen(task: nn.Module, run: Run, out: Path, crops: int = 1280) -> dict[str, Any]:
    """Evaluate the pretext task on crops of scans that the run did not see.

    These are the training side of another corpus or, after two corpora, the paired reconstructions.
    """
    other = {"self": "wild", "sarcoma": "wild", "wild-self": "paired_kernels"}.get(trained_on(run), "sarcoma")
    source = other if other in NAMES else data_folder() / other
    scans = prepare_corpus(find_scans(source), run.preprocess, cache_folder(out))
    samples = Samples(scans, task, run, seed=run.seed + 1)
    batches = max(1, min(40, crops // run.batch))
    places = Places(batch=run.batch, pieces=1, rank=0, world=1, first=0, last=batches)
    task.eval()
    rows = [
        {k: float(v) for k, v in task(replace(batch, progress=1.0)).items()}
        for batch in loader(samples, places, workers=0)
    ]
    means = {key: round(sum(row[key] for row in rows) / len(rows), 5) for key in rows[0]}
    return {"corpus": other, "crops": batches * run.batch, **means}


def write_card(folder: Path) -> None:
    """Write the card and its two pictures from the other files."""
    config, history = read_config(folder), json.loads((folder / "training.json").read_text())
    (folder / "README.md").write_text(card(config, history))
    log.draw(history["curve"], folder / "loss.png", title=f"{config['name']}: training")
    picture_features(
        load(folder),
        phantom()[0],
        folder / "features.png",
        title=f"{config['name']}: features of the phantom",
        progress=False,
    )


def entry(folder: Path) -> str:
    """Return the line for `ctssl/zoo.py`."""
    config = read_config(folder)
    if config["kind"] == "segmenter":
        return segmenter_entry(folder)
    return f'        _pretrained("{config["encoder"]}", "{config["corpus"]}", "{config["pretext"]}", "{config["sha256"]}"),'


def whole_state(name: str, out: Path | None, file: Path) -> None:
    """Write the task of a finished run, given by the name of its file in `training/runs` or the folder of its
    checkpoint.
    """
    if file.suffix != ".safetensors":
        raise SystemExit(f"{file}: the name must end in .safetensors")
    if file.exists():
        raise SystemExit(f"{file} exists; choose another name")
    own = (Path(name) / checkpoints.NEWEST).is_file()
    run = checkpoints.load_run(Path(name)) if own else find_run(name)
    task, _ = load_finished(run, out or (Path(name) if own else Path("runs") / name))
    write_weights(file, {key: value.contiguous().clone() for key, value in task.state_dict().items()})
    print(f"{file}: python -m training.pretrain ... --init {file} continues from it")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a file in training/runs, without .py, or the folder of a run")
    parser.add_argument("--out", type=Path, help="folder with the checkpoint (default: runs/<run>)")
    parser.add_argument("--card", action="store_true", help="write only the card")
    parser.add_argument("--seen", action="store_true", help="write only seen.json")
    parser.add_argument(
        "--full-state", type=Path, metavar="FILE", help="write only the whole task, as safetensors"
    )
    args = parser.parse_args()
    if args.full_state:
        whole_state(args.run, args.out, args.full_state)
        return
    own = (Path(args.run) / checkpoints.NEWEST).is_file()
    run = checkpoints.load_run(Path(args.run)) if own else find_run(args.run)
    if args.card:
        write_card(CARDS / run.name)
        return
    if args.seen:
        (CARDS / run.name / SEEN).write_text(seen(run))
        return
    folder = export(run, args.out or (Path(args.run) if own else Path("runs") / args.run))
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    print(f"{folder} ({size:.1f} MB, {folder / CONFIG}). The entry for ctssl/zoo.py:\n{entry(folder)}")


if __name__ == "__main__":
    main()
