"""Execute the tutorials and keep what their cells print and show: `python docs/site/execute.py [NAME ...]`.

Each notebook runs in a temporary folder with a kernel of its own, and is written back with its outputs and without anything that
differs from run to run, such as times. Needs nbclient and ipykernel (`python -m pip install -e ".[notebooks]"`).
"""

import base64
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
TIMEOUT = 600  # seconds for a cell


def execute(path: Path) -> float:
    """Execute a notebook in place, and return the seconds that it took."""
    notebook = nbformat.read(path, as_version=4)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    for number, cell in enumerate(notebook.cells, 1):
        cell.id, cell.metadata = f"cell-{number}", {}
        for output in cell.get("outputs", []):
            output.pop("metadata", None)
            if "data" in output:
                output["metadata"] = {}
            if "image/png" in output.get("data", {}):
                output["data"] = {"image/png": shrink(output["data"]["image/png"])}
    notebook.metadata = METADATA
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return time.monotonic() - begin


def shrink(picture: str) -> str:
    """Return a base64 PNG without transparency, compressed as far as it goes."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    small = io.BytesIO()
    image.convert("RGB").save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def main(names: list[str]) -> None:
    """Execute the tutorials of these names; of no name, all."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm, where there is no ipywidgets
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        if not names or path.stem in names:
            print(f"{path.name}: {execute(path):.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
