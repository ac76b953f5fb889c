"""What is imported when, and who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ctssl

PACKAGE = Path(ctssl.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after running `code`."""
    ask = "import sys; print('\\n' + ' '.join({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{ask}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_importing_and_listing_load_no_torch():
    assert not {"torch", "monai", "timm", "numpy", "nibabel"} & loaded_by(
        "import ctssl; ctssl.list_models(); dir(ctssl)"
    )
    assert not {"torch", "monai", "numpy"} & loaded_by("from ctssl.cli import main; main(['list'])")


def test_loading_an_encoder_loads_neither_timm_nor_monai():
    name = next(n for n in ctssl.list_models() if ctssl.info(n).kind == "encoder")
    loaded = loaded_by(
        f"import ctssl; from ctssl.phantom import phantom; e = ctssl.load({name!r}); e.embed(phantom(8.0)[0])"
    )
    assert "torch" in loaded and not {"timm", "monai"} & loaded


def test_every_public_name_exists_and_none_is_a_module():
    for name in dir(ctssl):
        getattr(ctssl, name)
        assert not (PACKAGE / f"{name}.py").exists(), (
            f"ctssl.{name} and ctssl/{name}.py: a function or a module?"
        )
    with pytest.raises(AttributeError, match="it has .*load_segmenter"):
        ctssl.nothing  # noqa: B018


ARROWS = {  # module: what it may import of ctssl at import time; a package stands for everything in it
    "": set(),
    "zoo": set(),
    "volume": {"writing", "zoo"},
    "names": set(),
    "tables": set(),
    "writing": set(),
    "nifti": set(),
    "configs": set(),
    "sampling": set(),
    "metrics": set(),
    "phantom": {"volume"},
    "lint": {"volume"},
    "shifts": {"lint", "shifts", "volume"},
    "stamps": {"curves", "datasets", "shifts", "volume"},
    "dicom": {"dicom_file"},
    "dicom_file": {"nifti"},
    "drawn": {"dicom", "dicom_file", "nifti", "volume"},
    "dicom_seg": {"", "dicom", "volume", "writing"},
    "datasets": {"lint", "names", "tables", "volume"},
    "pictures": {"volume", "writing"},
    "remote": {"names"},
    "hub": {"configs", "names", "remote", "tables", "zoo"},
    "provenance": {"remote"},
    "cards": set(),
    "downloads": {"hub", "names", "remote", "zoo"},
    "encoders": {"encoders"},
    "heads": {"heads", "encoders", "volume"},
    "loading": {"configs", "encoders", "hub", "provenance", "writing", "zoo"},
    "families": {"families", "encoders"},
    "unpickle": set(),
    "pickles": set(),
    "convert": {"encoders", "families", "hub", "loading", "pickles", "provenance", "zoo"},
    "exporting": {"writing"},
    "inference": {"lint", "names", "tables", "volume", "writing", "zoo"},
    "fingerprint": {"phantom", "sampling"},
    "splits": {"datasets"},
    "precision": set(),
    "fitting": {"precision", "sampling", "writing"},
    "thresholds": {"datasets", "inference", "metrics"},
    "planning": {"volume", "zoo"},
    "outcome": {"datasets", "evaluation", "fitting", "volume"},
    "finetuning": {
        "datasets",
        "encoders",
        "fitting",
        "heads",
        "hub",
        "inference",
        "lint",
        "loading",
        "outcome",
        "planning",
        "provenance",
        "shifts",
        "splits",
        "tables",
        "thresholds",
        "volume",
        "zoo",
    },
    "evaluation": {"datasets", "metrics", "tables", "volume", "writing"},
    "curves": {"evaluation"},
    "sources": {"curves", "datasets", "evaluation", "stamps", "tables", "volume"},
    "agreement": {"inference", "metrics", "tables", "volume"},
    "robustness": {
        "curves",
        "datasets",
        "evaluation",
        "shifts",
        "sources",
        "stamps",
        "tables",
        "volume",
        "writing",
    },
    "similarity": {"inference", "sampling", "writing"},
    "demo": {"inference", "loading", "phantom", "pictures", "volume", "zoo", "writing"},
    "cli": {"", "cli_common", "cli_judge", "cli_models", "cli_segment", "cli_shifts", "cli_train"},
    "cli_common": set(),
    "cli_judge": {"", "cli_common"},
    "cli_models": set(),
    "cli_segment": {"", "cli_common"},
    "cli_shifts": {"cli_common"},
    "cli_train": {""},
}


def imports(path: Path) -> set[str]:
    """Parts of ctssl that a file imports when it is itself imported; not those under TYPE_CHECKING or in functions."""
    found = set()

    def visit(nodes) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ctssl":
                parts = (node.module or "").split(".")
                found.update([parts[1]] if len(parts) > 1 else [a.name for a in node.names])
            elif isinstance(node, ast.Import):
                found.update(
                    (a.name.split(".") + [""])[1] for a in node.names if a.name.split(".")[0] == "ctssl"
                )
            elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
                visit(node.body)

    visit(ast.parse(path.read_text()).body)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nobody_imports_whom_they_may_not(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py").replace("__init__", "")
    assert imports(path) <= ARROWS[part], f"{part} may import {sorted(ARROWS[part])}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_library_knows_no_pickle_and_no_recipes(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        roots = {n.split(".")[0] for n in [*names, getattr(node, "module", None) or ""]}
        assert not roots & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, (
            f"line {node.lineno}"
        )
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert not {r.split(".")[0] for r in [getattr(node, "module", None) or "", *names]} & {
                "training",
                "tests",
                "examples",
            }
        if isinstance(node, ast.Attribute):
            unsafe = node.attr == "load" and isinstance(node.value, ast.Name) and node.value.id == "torch"
            unsafe = unsafe and path.name != "unpickle.py"  # a process of its own, see the test below
            assert not unsafe, f"torch.load in line {node.lineno}"
            assert node.attr not in ("load_state_dict_from_url", "allow_pickle")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            assert not {"load", "serialization"} & set(names), f"line {node.lineno}"
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle", f"line {node.value.lineno}"


def test_the_one_pickle_is_opened_for_its_tensors_alone():
    """`unpickle.py` calls `torch.load` once, with `weights_only=True`, and knows nothing of ctssl; nobody imports it at once."""
    nodes = list(ast.walk(ast.parse((PACKAGE / "unpickle.py").read_text())))
    calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    loads = [n for n in calls if n.func.attr == "load" and getattr(n.func.value, "id", "") == "torch"]
    keywords = [{k.arg: ast.literal_eval(k.value) for k in n.keywords} for n in loads]
    assert keywords == [{"weights_only": True, "map_location": "cpu"}]
    imported = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}
    assert not any(name.startswith("ctssl") for name in imported)
    assert all("unpickle" not in imports(path) for path in MODULES)
