"""Numbers in the README and the cards are those of the result files."""

import json
from pathlib import Path

import pytest

from ctssl.zoo import MODELS
from training.card import card
from training.data.corpora import split
from training.experiments import sarcoma

ROOT = Path(__file__).parent.parent


def test_the_readme_shows_the_measured_table():
    text = (ROOT / "README.md").read_text()
    shown = text.split("<!-- sarcoma -->\n")[1].split("<!-- end -->")[0]
    assert shown == sarcoma.table()


def test_the_results_cover_every_test_case_and_add_up():
    kept = json.loads(sarcoma.RESULTS.read_text())
    for rows in kept["models"].values():
        for row in rows:
            assert sorted(row["cases"]) == split("test")
            assert row["mean_dsc"] == pytest.approx(sum(row["cases"].values()) / 12, abs=1e-3)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_card_is_what_its_files_say(name):
    folder = ROOT / "model_cards" / name
    config, history = (json.loads((folder / file).read_text()) for file in ("config.json", "training.json"))
    assert (folder / "README.md").read_text() == card(config, history)


def test_the_readme_names_every_model():
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text for name in MODELS)
