"""The site: a page for every public name and command, documents that link to one another, and a strict build."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ctssl
from ctssl.cli.main import main

ROOT = Path(__file__).parent.parent
SITE = ROOT / "docs" / "site"
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers.python", "pymdownx")


@pytest.fixture
def pages(monkeypatch):
    """The module that makes pages; MkDocs finds it beside the hooks, too."""
    monkeypatch.syspath_prepend(str(SITE))
    import pages  # type: ignore[import-not-found]

    yield pages
    sys.modules.pop("pages")


def test_every_public_name_is_on_the_page_of_the_api(pages, monkeypatch):
    listed = [line.removeprefix("::: ctssl.") for line in pages.api_page().splitlines() if ":::" in line]
    assert sorted(listed) == [name for name in dir(ctssl) if name != "__version__"]
    monkeypatch.delitem(pages.API, "Scans")
    with pytest.raises(ValueError, match="Volume"):
        pages.api_page()


def test_every_command_has_a_page_with_its_help(pages, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(pages.HELP_WIDTH + 2))  # argparse leaves two free
    found = pages.command_pages()
    for path in found.keys() - {"commands/index.md"}:
        with pytest.raises(SystemExit):
            main([Path(path).stem, "--help"])
        assert f"```text\n{capsys.readouterr().out}```" in found[path]
        assert f"]({Path(path).name})" in found["commands/index.md"]
    assert len(found) > 10


def test_a_command_shows_the_examples_of_the_guides(pages):
    page = pages.command_page("shift")
    assert "\nctssl shift SCANS SHIFTED --every\n" in page and "](../shifts.md)" in page


def test_documents_outside_bring_their_pictures(pages):
    found = pages.document_pages("model_cards/RESULTS.md")
    assert "project/training/experiments/results/lung.png" in found
    assert len(pages.CARDS) == len(ctssl.list_models()) and pages.place_of(ctssl.list_models()[0])
    assert pages.place_of("docs/hub.md") == "hub.md" and pages.place_of("nothing.md") == ""


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    def has(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            return False

    missing = [module for module in NEEDED if not has(module)]
    if missing:
        pytest.skip(f"the site needs {', '.join(missing)}: pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", SITE / "mkdocs.yml", "-d", tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for page in (
        "index",
        "finetuning/index",
        "api/index",
        "commands/segment/index",
        "tutorials/features/index",
    ):
        assert (tmp_path / f"{page}.html").is_file()
    api = (tmp_path / "api" / "index.html").read_text()
    assert all(f'id="ctssl.{name}"' in api for name in dir(ctssl) if name != "__version__")
    shutil.rmtree(tmp_path)
