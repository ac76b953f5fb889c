"""A finished pretraining -> its model folder: `python -m training.export swin_wild_mim [--out runs/swin_wild_mim]`.

Writes `model_cards/<name>/` (weights in fp16, config with the feature fingerprint, card, training.json) and prints the
entry for `ctssl/zoo.py`. `--card` writes only the card again, from the files that are there.
"""

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ctssl.fingerprint import fingerprint
from ctssl.hub import CONFIG, read_config
from ctssl.loading import encoder_config, load, write_folder
from ctssl.zoo import ModelSpec
from training.card import card
from training.data.cache import prepared
from training.data.corpora import corpus, provenance
from training.pretrain import Run, build, crops, find_run

CARDS = Path(__file__).parent.parent / "model_cards"
LICENCE = "Apache-2.0"


def export(run: Run, out: Path, cards: Path = CARDS) -> Path:
    """Write the model folder of a finished run."""
    path = out / "checkpoint.pt"
    if not path.exists():
        raise SystemExit(f"no {path}: run `python -m training.pretrain` first")
    state = torch.load(path, map_location="cpu", weights_only=True)
    done = json.loads(state["run"])
    if done != json.loads(json.dumps(asdict(run))):
        raise SystemExit(f"{path} belongs to a run with other settings than training/runs has now")
    if state["step"] < run.steps:
        raise SystemExit(f"{path} is at step {state['step']} of {run.steps}: finish the run first")
    task = build(run)
    encoder: Any = task.encoder
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    task.load_state_dict(state["task"])
    encoder.eval()
    untrained = [key for key, value in encoder.state_dict().items() if torch.equal(value, before[key])]
    for p in encoder.parameters():
        p.data = p.data.half().float()  # what fp16 keeps, so that the fingerprint is the one users get
    encoder.spec = ModelSpec(run.name, "encoder", run.encoder, preprocess=run.preprocess, corpus=run.corpus, pretext=run.task,
                             licence=LICENCE, data=f"{len(corpus(run.corpus))} public CT scans")  # fmt: skip
    config = encoder_config(encoder, name=run.name)
    config |= {"untrained": untrained, "fingerprint": fingerprint(encoder)}
    history = {
        "command": f"python -m training.pretrain {out.name}", "run": done, "hours": round(state["seconds"] / 3600, 3),
        "device": state["device"], "processes": state["world"], "torch": torch.__version__, "python": platform.python_version(),
        "curve": thinned(state["log"]), "unseen": unseen(task, run, out), "scans": provenance(run.corpus),
    }  # fmt: skip
    folder = write_folder(encoder, cards / run.name, config, half=True, overwrite=True,
                          extra={"training.json": json.dumps(history, indent=1) + "\n"})  # fmt: skip
    write_card(folder)
    return folder


def thinned(log: list[dict], points: int = 150) -> list[dict]:
    """The curve as means over equal stretches of steps."""
    parts = np.array_split(np.arange(len(log)), min(points, len(log)))
    return [{key: round(float(np.mean([log[i][key] for i in part])), 5) for key in log[0]} for part in parts]


@torch.inference_mode()
def unseen(task: nn.Module, run: Run, out: Path, batches: int = 40) -> dict[str, Any]:
    """The pretext's numbers on crops of scans that the run did not see: the training side of the other corpus."""
    other = "wild" if run.corpus == "self" else "self"
    scans = prepared(corpus(other), run.preprocess, out.parent / "cache")
    task.eval()
    rows = []
    for i in range(batches):
        torch.manual_seed(i)
        rows.append({key: float(value) for key, value in task(crops(scans, run, step=-1 - i + 10**6, rank=0)).items()})
    return {
        "corpus": other,
        "crops": batches * run.batch,
        **{k: round(float(np.mean([r[k] for r in rows])), 5) for k in rows[0]},
    }


def write_card(folder: Path) -> None:
    config, history = read_config(folder), json.loads((folder / "training.json").read_text())
    (folder / "README.md").write_text(card(config, history))


def entry(folder: Path) -> str:
    """The line for `ctssl/zoo.py`."""
    config, spec = read_config(folder), load(folder).spec
    assert spec is not None
    return (f"    ModelSpec({spec.name!r}, 'encoder', {spec.encoder!r}, {config['encoder_args']!r}, {spec.preprocess!r}, "
            f"{spec.corpus!r}, {spec.pretext!r}, {spec.parameters}, None, None, {config['sha256']!r}, {spec.licence!r}, "
            f"{spec.data!r}),")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a file in training/runs, without .py")
    parser.add_argument("--out", type=Path, help="folder with the checkpoint (default runs/<run>)")
    parser.add_argument("--card", action="store_true", help="only the card")
    args = parser.parse_args()
    run = find_run(args.run)
    if args.card:
        write_card(CARDS / run.name)
        return
    folder = export(run, args.out or Path("runs") / args.run)
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    print(f"{folder} ({size:.1f} MB, {folder / CONFIG}). The entry for ctssl/zoo.py:\n{entry(folder)}")


if __name__ == "__main__":
    main()
