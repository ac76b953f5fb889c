"""The pages and pictures of the study, from what `training.experiments.study` found."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ctssl.evaluation.statistics import mean_interval
from ctssl.files.atomic import write_whole
from ctssl.files.text import markdown
from ctssl.robustness.curves import Line, draw
from ctssl.shifts import SHIFTS
from training.experiments.study.claims import CONVOLUTIONAL
from training.experiments.study.measured import MARGIN, MARGIN_LOST, SHIFTED, SURE, Measured, sure
from training.experiments.study.patients import CLEAN, CUBE, SEVERITIES, UNTRUE
from training.experiments.trials import told, told_p

KERNELS = """What `training.experiments.lung` trained on 50 of the patients marks in a smooth and in a sharp reconstruction of two
chests, and what released segmenters (`lung-tumour-*`, where listed) mark (`python -m training.experiments.kernels`). Two
patients, without masks: they show how far the two masks agree, not which is right, and cannot tell starts apart. The first
learned from cubes around tumours alone and mark litres of a chest, so their agreement says little; `lung-tumour-*` saw chests
without a tumour too.
"""


SHOWN = [
    f"{encoder}-{start}"
    for encoder in ("vit", "swin")
    for start in ("scratch", "self-smit", "wild-smit", "self-contrastive", "wild-lesions")
] + [CONVOLUTIONAL]
"""Contestants of the tables by shift and by tumour, and of the pictures."""

LENGTHS = (("", "1,000"), (", 3000 steps", "3,000"))
"""The end of a contestant's name, and its steps."""

LIMITS = """**Limits first.**

- The wild corpus has 46 scans of some twenty collections (two thirds show a part of the chest), the self corpus the 150 training
  scans of the task. The paper has 10,412 and about 350: "wild" is the larger corpus there and the smaller one here, so what it
  says of size cannot be tested.
- Encoders are small (ViT 1.6, Swin 3.2 million parameters; the paper's Swin 10.6) and were pretrained for one to seven minutes
  on one GPU: 20,000 (Swin, SMIT) to 146,000 (ViT, contrastive) samples, about as many of wild as of self for each pretext.
  Exceptions: `*-wild-lesions` have 371,000 and 458,000 samples, the ViT from a contrastive start. Compare these with scratch, not
  with `*-self-lesions` (75,000 and 77,000 samples). `vit-wild-self-lesions` goes on from `vit-wild-lesions` for 32,000 samples,
  on a CPU. `training/experiments/results/gpu_h200.md` lists the others.
- **Each encoder was pretrained once**; seeds repeat the fine-tuning alone. What another pretraining would give is not known.
- `*-wild-lesions` and `*-self-{smit,mim,contrastive}` are the released models of these names (of `swin-self-smit` and
  `swin-self-mim` the study read files of another hash); `*-wild-{smit,mim,contrastive}` are not: those released have other
  recipes (26 scans, 2 mm, [-500, 500] HU). The others of the study are not released.
- Fine-tuning took 1,000 steps, 3,000 where the start says so. From scratch, 1,000 are too few (see the table of all starts).
- Scores are of boxes of 64 mm around a tumour, off centre; the paper used cubes of 192 to 256 mm. Neither is a whole scan.
- Shifts are simulated on these boxes. `truncation` is left out, since a box has no field of view; `dose` and `streaks` know
  nothing of the body outside. Manufacturer, kernel and contrast of the scans are not known, so the paper's strata of differently
  acquired scans cannot be repeated.
- Seeds are averaged; how many a start has is in the table of all starts. Most trainings ran on the GPU in bf16, some on a CPU in
  float32 (`device` in `robustness.jsonl`); the encoder learns at 0.001 from scratch, at 0.0003 if it is pretrained.
- Of the paper's tables these are not compared: ITD, the epochs that pretraining saves (Table 4; see the steps below), DSC against
  volume.
"""


def page(found: dict[str, Any], pictures: list[Path]) -> str:
    """Return `STUDY.md` from `STUDY.json`."""
    lines = [
        "# Does pretraining in the wild make a segmenter of lung tumours robust? The paper's claims on its public patients\n",
        LIMITS,
        _method(found),
        "## The abstract\n",
        _claims(found["abstract"]),
        "Feature reuse (CKA before and after fine-tuning, first and last three blocks; sign tests over encoders):\n",
        _table(found["reuse_claims"]),
        "## What to do with it\n",
        *(f"- {sentence}" for sentence in advice(found)),
        "",
        *(f"![{path.stem.partition('STUDY_')[2].replace('_', ', ')}]({path.name})\n" for path in pictures),
        "## The paper's tables\n",
        _claims(found["claims"]),
        "## Every start\n",
        "DSC of the boxes, of the whole cubes, and of the boxes as a mean over all shifts.\n",
        _starts(found["starts"]),
        f"## Beside a convolutional network from scratch (`{CONVOLUTIONAL}`)\n",
        _compared(found["convolutional"], ["start", "place"]),
        "## Wild against self, the same recipe on both\n",
        _compared(found["corpora"], ["encoder", "pretext", "place"]),
        "## What the shifts cost, beside training from scratch\n",
        "Mean over all shifts minus clean, of the start minus that from scratch: below 0 it loses more.\n",
        _compared(found["lost"], ["start"]),
        "## Shifted copies of the training scans (`--shift-augment 2`): does augmentation buy what pretraining buys?\n",
        _compared(found["augmentation"], ["start", "place"]),
        "## DSC under each shift\n",
        _table(found["shifts"]),
        "## By tumour: gain over scratch\n",
        _compared(found["strata"], ["tumours", "start"]),
        "## Feature reuse\n",
        "CKA of the fine-tuned encoder with itself before, with the model of the other corpus, and with random weights.\n",
        _table(found["reuse"]),
        "## Steps until 95% of what training from scratch reaches on the 40 patients\n",
        _table(found["costs"]),
        "## Few labels\n",
        "500 steps (or as the start says) of `training.experiments.lung` on some of the 150 patients, on the same boxes.\n",
        _table(found["labels"]),
        "`vit-wild-lesions` beside a convolutional network from scratch; intervals and p over patients, not over trainings.\n",
        _few_labels_table(found["few_labels"]),
    ]
    if found["kernels"]:
        lines += [
            "## Two reconstructions of one acquisition\n",
            KERNELS,
            _table(found["kernels"]),
        ]
    if found["missing"]:
        lines += [
            "## Not measured\n",
            *(f"- {one}" for one in found["missing"]),
            *(
                []
                if found["kernels"]
                else ["- the two pairs of kernels (`python -m training.experiments.kernels`)"]
            ),
            "\n`python -m training.experiments.robustness --models FOLDER` goes on there, with the encoders of the study.",
        ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _method(found: dict[str, Any]) -> str:
    """Return how the numbers came about and what a verdict means."""
    vit, swin = (f"{found['noise'][encoder]:.3f}" for encoder in ("vit", "swin"))
    devices = " and ".join(found["devices"])
    effect = ", ".join(
        f"{name} {one['difference']:+.3f} from seed 0 to 1, p = {one['p']:.2f}, {one['starts']} starts"
        for name, one in (("ViT", found["seed_effect"]["vit"]), ("Swin", found["seed_effect"]["swin"]))
    )
    return f"""{found["trainings"]} fine-tunings on NSCLC-Radiomics (150 patients to learn from, 40 to pick the weights by),
judged on {found["patients"]} patients of NSCLC-Radiogenomics at 1.5 mm, on {devices}. Made by
`{found["command"]}` from what `python -m training.experiments.robustness` measured.

**How sure.** Differences are of DSC, means over patients, with 95% bootstrap intervals. These know the patients alone, and
trainings differ more: the mean DSC of one training has a standard deviation of {vit} (ViT) and {swin} (Swin) over seeds,
pooled over all starts, so that two starts with two trainings each have to differ by more than twice as much. Every start counts
with all of its trainings: a seed does not move all starts alike ({effect}). `+-` says how far a difference may be off for both
reasons; p is of the t-test that knows both, corrected by Holm (all claims together, every other table for itself).

- Agrees or disagrees: p below {SURE:g}.
- Alike: p above, and the difference with its `+-` within {MARGIN:g} (of what shifts cost: {MARGIN_LOST:g}).
- Less than the paper's: p above, and the paper's difference beyond the `+-` (not corrected; its networks and scans are larger).
- Cannot tell: none of these.

A kind of network of which every start was trained once has the largest noise of the others.

A mean of three pretexts (SMIT, masked image prediction, contrastive) has three times the trainings of one, so it decides more.
"""


def advice(found: dict[str, Any]) -> list[str]:
    """Return what a clinic should do, in sentences that follow from the numbers."""
    rows = {row["start"]: row for row in found["starts"]}
    gains = {
        name: row["difference"] for name, row in rows.items() if "difference" in row and name.count(" ") == 0
    }
    return [
        _best_start(rows),
        *_convolutional(rows, found["labels"]),
        _few_labels(found["labels"]),
        _pretexts(gains),
        _corpora(found["corpora"]),
        _worst_shift(found["shifts"]),
        _lost(found["lost"]),
        _augmentation(found["augmentation"], max(gains.values())),
    ]


def _best_start(rows: dict[str, dict[str, Any]]) -> str:
    told = []
    for encoder, name in (("vit", "a ViT"), ("swin", "a Swin")):
        both = [
            ", ".join(
                f"{rows[start + more][CLEAN]:.2f} after {steps}"
                for more, steps in LENGTHS
                if start + more in rows
            )
            for start in (f"{encoder}-wild-lesions", f"{encoder}-scratch")
        ]
        if all(both):
            told.append(f"`{encoder}-wild-lesions` has a DSC of {both[0]}, {name} from scratch {both[1]}")
    return f"Start from pretrained weights: {'; '.join(told)} steps."


def _convolutional(rows: dict[str, dict[str, Any]], labels: list[dict[str, Any]]) -> list[str]:
    """Return what a convolutional network without pretraining reaches."""
    own = rows.get(CONVOLUTIONAL)
    if own is None:
        return []
    best = "vit-wild-lesions, 3000 steps"
    few = ", ".join(
        f"{row['DSC']:.2f} with {row['labelled patients']}"
        for row in labels
        if row["start"].startswith("dynunet-8")
    )
    return [
        "With many labels little is left to gain over a small convolutional network: `dynunet-8` (nnU-Net's network with a "
        f"quarter of its channels) has {own[CLEAN]:.2f} after 3,000 steps on all patients, {own[SHIFTED]:.2f} under the "
        f"shifts, in whole cubes {own[CUBE]:.2f} (trainings: {own['seeds']}); `{best}` has {rows[best][CLEAN]:.2f}, "
        f"{rows[best][SHIFTED]:.2f} and {rows[best][CUBE]:.2f}. With few labels it stays behind: {few} (1,500 steps). Train it "
        "beside a pretrained one and keep the better."
    ]


def _few_labels(labels: list[dict[str, Any]]) -> str:
    known = {(row["start"], row["labelled patients"]): row["DSC"] for row in labels}
    mine, scratch = (
        ", ".join(f"{dsc:.2f} with {n}" for (name, n), dsc in known.items() if name == start)
        for start in ("vit-wild-lesions", "vit-scratch")
    )
    told = (
        f"By labelled patients (500 steps each), `vit-wild-lesions` has {mine}; from scratch it is {scratch}."
    )
    worse = known.get(("vit-wild-lesions", 1), 1.0) < known.get(("vit-wild-lesions", 0), 0.0)
    return told + (" Do not fine-tune it on one patient: it gets worse than as it comes." if worse else "")


def _pretexts(gains: dict[str, float]) -> str:
    order = sorted(gains, key=lambda name: -gains[name])
    best = "; ".join(f"`{name}` {gains[name]:+.2f}" for name in order[:4])
    smit, mim = (_range([g for name, g in gains.items() if name.endswith(end)]) for end in ("smit", "mim"))
    said = f"{best}; SMIT {smit}, masked image prediction {mim}"
    return f"Largest gains over scratch: {said}."


def _corpora(rows: list[dict[str, Any]]) -> str:
    clean = [row for row in rows if row["place"] == CLEAN]
    each = ", ".join(f"{row['encoder']} {row['pretext']} {row['difference']:+.2f}" for row in clean)
    certain = [f"{row['encoder']} {row['pretext']}" for row in clean if sure(row)]
    return (
        f"Wild scans or one's own: wild minus own is {each}; sure (corrected p below {SURE:g}) of these: "
        f"{', '.join(certain) or 'none'}. Whoever has a hundred scans of the task can pretrain on these."
    )


def _lost(rows: list[dict[str, Any]]) -> str:
    more = [row for row in rows if row["difference"] < 0]
    most = min((row["difference"] for row in rows), default=0.0)
    return (
        f"Pretraining makes a segmenter better, not less sensitive: {len(more)} of {len(rows)} pretrained starts lose more to "
        f"the shifts than from scratch ({sum(map(sure, more))} with a corrected p below {SURE:g}), up to {-most:.3f} more: who "
        "starts higher has more to lose."
    )


def _augmentation(rows: list[dict[str, Any]], most: float) -> str:
    brought = {(row["start"], row["place"]): f"{row['difference']:+.3f}" for row in rows}
    names = dict.fromkeys(row["start"] for row in rows)
    told = "; ".join(
        f"`{name}` {brought[name, CLEAN]} clean, {brought[name, SHIFTED]} shifted" for name in names
    )
    certain = [row for row in rows if sure(row)]
    return f"Shifted copies of the training scans (`--shift-augment 2`) bring: {told}; " + (
        f"{len(certain)} of these can be told from chance."
        if certain
        else f"none of it can be told from the noise of trainings. The best pretraining brings {most:+.2f}."
    )


def _worst_shift(rows: list[dict[str, Any]]) -> str:
    """Return which simulated difference costs most, and whom."""
    last = f"severity {SEVERITIES[-1]}"
    shifts = list(dict.fromkeys(row["shift"] for row in rows))
    lost = {
        shift: np.mean([row[last] - row["clean"] for row in rows if row["shift"] == shift])
        for shift in shifts
    }
    worst, *others = sorted(shifts, key=lambda shift: lost[shift])
    each = [f"`{row['start']}` {row[last] - row['clean']:+.2f}" for row in rows if row["shift"] == worst]
    most = {
        shift: max(abs(row[last] - row["clean"]) for row in rows if row["shift"] == shift) for shift in others
    }
    harmless = [shift for shift in others if most[shift] < 0.005]
    places = ("clean", *(f"severity {severity}" for severity in SEVERITIES))
    by_start = {(row["start"], row["shift"]): row for row in rows}
    stays = all(
        row[place] > by_start[f"{row['start'].split('-')[0]}-scratch", row["shift"]][place]
        for row in rows
        for place in places
        if row["start"].endswith(("lesions", "contrastive"))
    )
    return (
        f"Of the simulated differences `{worst}` costs most (at its highest severity: {', '.join(each)}); "
        f"{', '.join(f'`{shift}`' for shift in harmless) or 'none'} cost no start more than 0.005. No start makes a segmenter "
        f"invariant{'; the better starts stay above scratch under every shift' if stays else ''}."
    )


def _range(values: list[float]) -> str:
    return f"{min(values):+.2f} to {max(values):+.2f}" if values else "not measured"


def _claims(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        means = " against ".join(f"{mean:.3f}" for mean in row.get("means", []))
        shown = f"{means}: {_difference(row)}" if len(row.get("means", [])) == 2 else _difference(row)
        counts = f"{row['patients']}, {row['trainings']}" if "patients" in row else ""
        cells.append([row["claim"], row["paper"], shown, _reach(row), counts, _p(row), row["verdict"]])
    head = [
        "claim",
        "the paper (DSC)",
        "here: DSC, difference (95% interval over patients)",
        "+-",
        "patients, trainings",
        "p",
        "verdict",
    ]
    return markdown(head, cells)


def _starts(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["start"],
            str(row["seeds"]),
            *(f"{row[place]:.3f}" for place in (CLEAN, CUBE, SHIFTED)),
            row.get("against", ""),
            _difference(row),
            _reach(row),
            _p(row),
        ]
        for row in rows
    ]
    head = [
        "start",
        "seeds",
        "boxes",
        "cubes",
        "shifted",
        "against",
        "difference (95% interval)",
        "+-",
        "p",
    ]
    return markdown(head, cells)


def _compared(rows: list[dict[str, Any]], keys: list[str]) -> str:
    cells = [
        [
            *(str(row[key]) for key in keys),
            " ".join(f"{m:.3f}" for m in row["means"]),
            _difference(row),
            _reach(row),
            _p(row),
        ]
        + [f"{row['patients']}, {row['trainings']}"]
        for row in rows
    ]
    return markdown([*keys, "means", "difference (95% interval)", "+-", "p", "patients, trainings"], cells)


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [[_cell(value) for value in row.values()] for row in rows]
    return markdown(list(rows[0]), cells) if rows else "Not measured.\n"


def _few_labels_table(rows: list[dict[str, Any]]) -> str:
    cells = [[row["pretrained"], row["from scratch"], _difference(row), _p(row)] for row in rows]
    return markdown(["pretrained", "from scratch", "difference (95% interval)", "p"], cells)


def _difference(row: dict[str, Any]) -> str:
    return told(row) if "difference" in row else ""


def _reach(row: dict[str, Any]) -> str:
    return "" if row.get("reach") is None else f"{row['reach']:.3f}"


def _p(row: dict[str, Any]) -> str:
    p = row.get("p_holm")
    return "" if p is None else told_p(p)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join("-" if one is None else str(one) for one in value)
    return f"{value:.3f}" if isinstance(value, float) and abs(value) >= 0.001 else str(value)


def draw_pictures(kept: Measured, found: dict[str, Any], stem: Path) -> list[Path]:
    """Draw the gains over scratch, and DSC under each shift by severity; returns the files."""
    forest, curves = (Path(f"{stem}_{name}.png") for name in ("gains", "shifts"))
    write_whole(forest, lambda part: draw_gains(found["starts"], part))
    panels: dict[str, dict[str, Line]] = {}
    for shift in (one for one in SHIFTS if one not in UNTRUE):
        for name in (
            one
            for one in SHOWN
            if kept.seeds(one) and one.endswith(("scratch", "wild-smit", "wild-lesions", CONVOLUTIONAL))
        ):
            line: Line = []
            for severity in (0, *SEVERITIES):
                place = f"{shift} {severity}" if severity else CLEAN
                values = kept.scores(name, place, kept.seeds(name))
                low, high = mean_interval(values)
                line.append((severity, float(values.mean()), low, high))
            panels.setdefault(shift, {})[name] = line
    write_whole(curves, lambda part: draw(panels, part, whole=False))
    return [forest, curves]


def draw_gains(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the gain of each start over scratch with its interval, largest first, a panel for each encoder."""
    figure = Figure(figsize=(9.6, 4.6), layout="constrained", facecolor="white")
    colours = {"lesions": "C3", "contrastive": "C0", "mim": "C2", "smit": "C1"}
    for axes, encoder in zip(figure.subplots(1, 2, sharex=True), ("vit", "swin"), strict=True):
        mine = [row for row in rows if "difference" in row and row["start"].startswith(encoder)]
        mine = sorted(
            (row for row in mine if not row["start"].endswith("scratch + shifts")),
            key=lambda row: row["difference"],
        )
        for place, row in enumerate(mine):
            colour = next((c for pretext, c in colours.items() if pretext in row["start"]), "grey")
            if row["reach"] is not None:
                ends = [row["difference"] - row["reach"], row["difference"] + row["reach"]]
                axes.plot(ends, [place, place], color=colour, lw=0.8)
            axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=3)
            one = {"markerfacecolor": "white"} if row["seeds"] == 1 else {}
            axes.plot(row["difference"], place, "o", color=colour, ms=6, **one)
        axes.axvline(0, color="grey", lw=0.8)
        axes.set_yticks(
            range(len(mine)), [row["start"].removeprefix(f"{encoder}-") for row in mine], fontsize=8
        )
        axes.set(
            title={"vit": "ViT", "swin": "Swin"}[encoder],
            xlabel="DSC over the same recipe from scratch",
        )
        axes.grid(axis="x", alpha=0.3)
    figure.supxlabel(
        "thick: 95% over patients; thin: over patients and trainings; hollow: one training", fontsize=9
    )
    figure.savefig(path, dpi=110, format="png")
