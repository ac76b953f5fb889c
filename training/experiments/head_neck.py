"""A second labelled task: seven organs of the head and neck from five labelled patients.

`python -m training.experiments.head_neck [MODEL ...] [--seeds 0 1 2]` trains on five patients, drawn with each seed from the
18 training cases in which all seven organs were contoured, and judges on 50 others, each by the organs that were contoured in
it. These scans are for measuring: no published weight is trained on them. See `training.experiments.sarcoma` for what is kept
and printed.
"""

import re
from functools import cache
from pathlib import Path

import ctssl
from training.data.corpora import cases, data_folder
from training.experiments import lung, trials

RESULTS = Path(__file__).parent / "results" / "head_neck.json"
ORGANS = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible")


@cache
def contoured() -> dict[str, set[str]]:
    """Return the organs that were contoured in each case, as the column `note` has them."""
    found = {}
    for row in cases("head_neck"):
        listed = re.search("contoured here: ([^;]*);", row["note"])
        found[row["id"]] = set(listed[1].split()) if listed else set()
    return found


def table_of(folder: Path = Path("runs/head_neck")) -> Path:
    """Write the table of cases and return its path: 18 with all organs to train on, 50 to test on."""
    rows = []
    for row in cases("head_neck"):
        if row["split"] == "test" or contoured()[row["id"]] == set(ORGANS):
            image, label = (str(data_folder() / row[key]) for key in ("image", "label"))
            rows.append(
                {"id": row["id"], "image": image, "label": label, "patient": row["id"], "split": row["split"]}
            )
    return lung.write_rows(rows, folder / "cases.csv")


EXPERIMENT = trials.Experiment(
    "head-neck",
    "python -m training.experiments.head_neck",
    table_of,
    [],
    RESULTS,
    ["vit-scratch", "vit-wild-lesions", "swin-scratch", "swin-wild-lesions"],
    spacing_mm=3.0,
    window_hu=(-300.0, 500.0),
    settings=ctssl.Settings(steps=500, crop=48, batch=4, ema=0.99, validation=0.0),
    names=dict(enumerate(ORGANS, 1)),
    contoured=lambda name: contoured()[name],
)


if __name__ == "__main__":
    trials.run(EXPERIMENT, trials.options(__doc__, few_shot=5).parse_args())
