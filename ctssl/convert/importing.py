"""Import checkpoints of other projects as ctssl encoders."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctssl.convert.checkpoint import read_checkpoint
from ctssl.convert.families import FAMILIES
from ctssl.convert.families.moves import Move, Options, Translation
from ctssl.encoders import ENCODERS
from ctssl.encoders.pretrained import encoder_config
from ctssl.files.atomic import check_empty, file_sha256
from ctssl.files.names import check_path
from ctssl.hub.folder import write_folder
from ctssl.hub.provenance import facts
from ctssl.zoo import ModelSpec, Preprocess

MARKS = (
    "patch_embed.proj.weight",
    "patch_embedding.patch_embeddings.weight",
    "patch_embedding.patch_embeddings.1.weight",
)
STRANGERS = {  # keys of networks that cannot be imported, and what they are
    r"stages\.0\.blocks\.0\.attn\.bias_table$": "ctssl's own Swin: load its folder with ctssl.load",
    r"^positions$": "ctssl's own ViT: load its folder with ctssl.load",
    r"(cpb_mlp|logit_scale)": "a Swin V2 (SMIT Plus and others), which computes something else",
    r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table$": "a 2D Swin",
    r"encoder\.stages\.\d+\.\d+\.convs": "an nnU-Net, which is not a transformer",
    r"swin.*\.hyena|\.mixer\.": "a network with HyenaND blocks",
}
OUTSIDE = {
    r"(^|[./])(teacher|momentum|ema)": "teacher or moving average of the training",
    r"(encoder|decoder)\d+\.|(^|[./])out\.|upsample|transp_conv": "decoder",
    r"head|predict|proj|rotation|contrastive|mask_token|class": "pretext or classification head",
}
UNKNOWN_LICENCE = "unknown: that of the source file"


@dataclass(frozen=True)
class Imported:
    """Result of `import_checkpoint`.

    Attributes:
        folder: the folder that `ctssl.load` reads.
        family: key of `ctssl.convert.families.FAMILIES`.
        spec: spec of the encoder.
        keys: what became of each key of the source: `key`, `action` (taken, renamed, changed, joined, left
            out), `to`, `how`; also written to `import.json`.
        skipped: containers without weights and their number of tensors.
    """

    folder: Path
    family: str
    spec: ModelSpec
    keys: list[dict[str, str]]
    skipped: dict[str, int]

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of keys per action."""
        return dict(Counter(entry["action"] for entry in self.keys))


def import_checkpoint(
    file: str | os.PathLike,
    *,
    out: str | os.PathLike,
    family: str | None = None,
    merging: str | None = None,
    heads: int | None = None,
    grid: tuple[int, int, int] | None = None,
    norm_eps: float | None = None,
    root: str | None = None,
    spacing_mm: float | None = None,
    window_hu: tuple[float, float] | None = None,
    licence: str = UNKNOWN_LICENCE,
    overwrite: bool = False,
    seconds: float = 600.0,
) -> Imported:
    """Convert a checkpoint of another project to a folder that `ctssl.load` reads.

    Args:
        file: `.pt`, `.pth` (opened in a separate process, tensors only) or `.safetensors`.
        out: folder to write.
        family: key of `ctssl.convert.families.FAMILIES`. Default: derived from the names of the weights.
        merging: "1.4", "1.5" or "v2": the MONAI version that trained a MONAI Swin, which is not in any file.
        heads: attention heads of a ViT.
        grid: tokens of a ViT along each axis, if not a cube.
        norm_eps: epsilon of the norms of a ViT.
        root: prefix of the encoder's keys, when a file holds several encoders.
        spacing_mm: working spacing in mm. Default: the usual one of the family.
        window_hu: HU window. Default: the usual one of the family.
        licence: licence of the weights, for `config.json`.
        overwrite: write into a folder that is not empty.
        seconds: time limit for opening the file.

    Raises:
        ValueError: some part of the encoder cannot be represented or is missing; nothing is written.
        FileExistsError: `out` is not empty and `overwrite` is False.
    """
    file, out = Path(file), check_path(out)
    check_empty(out, overwrite=overwrite)
    checkpoint = read_checkpoint(file, seconds=seconds)
    root = _root(checkpoint.tensors, root, file)
    state = {key.removeprefix(root): t for key, t in checkpoint.tensors.items() if key.startswith(root)}
    family = _family(state, family, file)
    options = Options(merging, heads, grid, norm_eps)
    idle = [
        name
        for name, value in options._asdict().items()
        if value is not None and name not in FAMILIES[family].OPTIONS
    ]
    if idle:
        raise ValueError(f"--{idle[0].replace('_', '-')} does not apply to {family} checkpoints; omit it")
    try:
        translation = FAMILIES[family].translate(state, options)
        encoder = _build(translation)
    except ValueError as error:
        raise ValueError(f"{file} as {family}: {error}") from error
    encoder.spec = ModelSpec(
        out.resolve().name,
        "encoder",
        translation.encoder,
        preprocess=_preprocess(family, spacing_mm, window_hu),
        licence=licence,
        data=f"unknown: that of {file.name}",
    )
    keys = [
        _entry(key, key.removeprefix(root), translation.moves) if key.startswith(root) else _outside(key)
        for key in checkpoint.tensors
    ]
    source: dict[str, Any] = {"file": file.name, "sha256": file_sha256(file), "family": family, "root": root}
    source["options"] = {k: v for k, v in options._asdict().items() if v is not None}
    _write(encoder, out, source, {"keys": keys, "not_weights": checkpoint.skipped}, overwrite)
    return Imported(out, family, encoder.spec, keys, checkpoint.skipped)


def _write(encoder: Any, out: Path, source: dict[str, Any], report: dict[str, Any], overwrite: bool) -> None:
    """Write the folder of an imported encoder, with `import.json`."""
    config = encoder_config(encoder, name=encoder.spec.name) | {
        "parent": source["file"],
        "parent_sha256": source["sha256"],
        "source": FAMILIES[source["family"]].TITLE,
    }
    metadata = facts(
        recipe=[source["family"], source["options"], source["root"]],
        parent=f"{source['file']} sha256:{source['sha256']}",
        licence=encoder.spec.licence,
    )
    text = json.dumps({"source": source, **report}, indent=1) + "\n"
    write_folder(encoder, out, config, overwrite=overwrite, extra={"import.json": text}, metadata=metadata)


def _root(tensors: dict[str, Tensor], root: str | None, file: Path) -> str:
    """Return the prefix of the encoder's keys."""
    roots = sorted(
        {
            key.removesuffix(mark)
            for key in tensors
            for mark in MARKS
            if key.endswith(mark) and (len(key) == len(mark) or key[-len(mark) - 1] in "./")
        }
    )
    if root is not None:
        if root not in roots:
            raise ValueError(f"no encoder in {file} has the prefix {root!r}; use one of {roots}")
        return root
    students = [name for name in roots if name.startswith("student")]  # SMIT stores the teacher too
    if len(roots) == 2 and len(students) == 1 and any(name.startswith("teacher") for name in roots):
        return students[0]
    if len(roots) > 1:
        raise ValueError(f"{file} holds {len(roots)} encoders, {roots}; choose one with --root")
    if not roots:
        raise ValueError(
            f"{file} holds no known encoder: {_stranger(tensors)}; known families are {', '.join(FAMILIES)}"
        )
    return roots[0]


def _family(state: dict[str, Tensor], family: str | None, file: Path) -> str:
    """Return the requested family if the keys agree, otherwise the only one that they fit."""
    if family is not None and family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; use {', '.join(FAMILIES)}")
    if any(re.search("cpb_mlp|logit_scale", key) for key in state):
        raise ValueError(f"{file}: not representable: this is {_stranger(state)}")
    fitting = [name for name, module in FAMILIES.items() if module.looks(state)]
    if family in fitting:
        return str(family)
    if not fitting:
        raise ValueError(
            f"{file} belongs to no known family: {_stranger(state)}; known families are {', '.join(FAMILIES)}"
        )
    if family is not None:
        looks = " or ".join(f"a {FAMILIES[name].TITLE}; use --from {name}" for name in fitting)
        raise ValueError(f"{file} is not a {family} checkpoint: this looks like {looks}")
    if len(fitting) > 1:
        raise ValueError(f"{file} could be {' or '.join(fitting)}; choose one with --from")
    return fitting[0]


def _stranger(tensors: dict[str, Tensor]) -> str:
    for pattern, words in STRANGERS.items():
        if any(re.search(pattern, key) for key in tensors):
            return words
    return f"its first keys are {list(tensors)[:3]}" if tensors else "it holds no tensors"


def _build(translation: Translation) -> Any:
    """Build the encoder with every weight from the source, in evaluation mode."""
    encoder: Any = ENCODERS[translation.encoder](**translation.args)
    own, given = encoder.state_dict(), {}
    for key, move in translation.moves.items():
        if move.to is None or move.tensor is None:
            continue
        if move.to in given or move.to not in own:
            raise ValueError(f"not representable: {key} has no counterpart in our encoder ({move.to})")
        if move.tensor.shape != own[move.to].shape:
            raise ValueError(
                f"not representable: {key} has shape {tuple(move.tensor.shape)}, ours "
                f"{tuple(own[move.to].shape)}"
            )
        if not move.tensor.is_floating_point() or not torch.isfinite(move.tensor).all():
            raise ValueError(f"{key} holds infinite, NaN or integer values; download the file again")
        given[move.to] = move.tensor.float()
    missing = sorted(set(own) - set(given))
    if missing:
        raise ValueError(
            f"the file is incomplete: {len(missing)} of {len(own)} weights are missing, first {missing[0]}"
        )
    encoder.load_state_dict(given, strict=True)
    return encoder.eval()


def _preprocess(family: str, spacing_mm: float | None, window_hu: tuple[float, float] | None) -> Preprocess:
    spacing = FAMILIES[family].SPACING_MM if spacing_mm is None else spacing_mm
    window = FAMILIES[family].WINDOW_HU if window_hu is None else window_hu
    if spacing is None or window is None:
        raise ValueError(
            f"{family} has no usual preprocessing; add --spacing MM and --window-hu LOW HIGH, as the "
            "encoder was trained"
        )
    low, high = map(float, window)
    if not spacing > 0 or not low < high:
        raise ValueError(
            f"invalid spacing {spacing} mm (must be > 0) or window {low:g} to {high:g} HU (low must be "
            "< high)"
        )
    return Preprocess(float(spacing), (low, high))


def _entry(key: str, short: str, moves: dict[str, Move]) -> dict[str, str]:
    move = moves[short]
    if move.to is None:
        return {"key": key, "action": "left out", "to": "", "how": move.how}
    action = (
        "joined"
        if move.tensor is None
        else "changed"
        if move.how
        else "taken"
        if move.to == short
        else "renamed"
    )
    return {"key": key, "action": action, "to": move.to, "how": move.how}


def _outside(key: str) -> dict[str, str]:
    why = next(
        (words for pattern, words in OUTSIDE.items() if re.search(pattern, key)), "not part of the encoder"
    )
    return {"key": key, "action": "left out", "to": "", "how": f"outside the encoder: {why}"}
