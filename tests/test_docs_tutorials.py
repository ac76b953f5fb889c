"""The tutorials: committed with their outputs, small, and their cells run."""

import json
import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ctssl.phantom import phantom
from ctssl.volume.volume import Volume

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
each_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@each_tutorial
def test_a_tutorial_is_committed_as_it_ran(path):
    """`python docs/site/execute.py` runs them."""
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 400_000
    words = "".join("".join(o.get("text", [])) + str(o.get("data", {}).get("text/markdown")) for o in outputs)
    assert not re.findall(r"/(?:home|root|tmp|work|Users|usr|opt|var)/", words)


@each_tutorial
def test_links_of_a_tutorial_lead_somewhere(path):
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert links and all((path.parent / link).is_file() for link in links)
    assert f"tutorials/{path.name}" in (ROOT / "docs" / "index.md").read_text()


def picture(file: str) -> str:
    """`IPython.display.Image`, where there is no IPython."""
    assert Path(file).read_bytes().startswith(b"\x89PNG")
    return file


def middle(*arguments, **options) -> tuple[Volume, Volume]:
    """The phantom, but only 144 mm of it around its tumour, a sixth of its voxels: all cells run in less time."""
    found = []
    for one in phantom(*arguments, **options):
        side = round(144 / one.spacing_mm[0])
        first = [round(place) - side // 2 for place in np.linalg.solve(one.affine, [70, 10, 10, 1])[:3]]
        affine = one.affine.copy()
        affine[:3, 3] = (one.affine @ [*first, 1])[:3]
        found.append(replace(one, array=one.array[tuple(slice(n, n + side) for n in first)], affine=affine))
    return found[0], found[1]


@pytest.mark.slow
@each_tutorial
def test_the_cells_of_a_tutorial_run(path, tmp_path, monkeypatch):
    monkeypatch.setattr("ctssl.phantom.phantom", middle)
    display = types.ModuleType("IPython.display")
    display.Image, display.Markdown = picture, str  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf().savefig(f"shown{len(shown)}.png")))
    names: dict = {"__name__": "tutorial"}
    for number, cell in enumerate(cells(path, "code"), 1):
        exec(compile("".join(cell["source"]), f"{path.stem}, cell {number}", "exec"), names)
    plt.close("all")
    assert list(tmp_path.rglob("*.png"))
