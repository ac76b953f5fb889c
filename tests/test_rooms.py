"""What is imported when, and who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ctssl

PACKAGE = Path(ctssl.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
TRAINING = PACKAGE.parent / "training"
WITHOUT = {PACKAGE, TRAINING, TRAINING / "runs", TRAINING / "runs" / "paper", TRAINING / "runs" / "study"}


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


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_using_a_model_loads_neither_timm_nor_monai_nor_a_compiler(encoder):
    """Each takes as long to load as torch itself."""
    name = f"{encoder}-wild-lesions"
    loaded = loaded_by(
        "import sys, ctssl, numpy as np; from ctssl.phantom import phantom; "
        f"scan = ctssl.Volume(phantom(8.0)[0].array[:12, :12, :8], np.eye(4)); ctssl.load({name!r}).embed(scan); "
        f"ctssl.load_segmenter({name!r}).segment(scan); assert 'torch._dynamo' not in sys.modules"
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


@pytest.mark.parametrize(
    "room",
    sorted({path.parent for top in (PACKAGE, TRAINING) for path in top.rglob("__init__.py")} - WITHOUT),
    ids=lambda room: room.name,
)
def test_a_room_says_what_its_modules_are(room):
    """Each is named in the docstring of its room, or stands in a registry there."""
    text = (room / "__init__.py").read_text()
    doc = ast.get_docstring(ast.parse(text)) or ""
    others = sorted({path.stem for path in room.glob("*.py")} - {"__init__", "__main__"})
    assert not [
        one
        for one in others
        if f"`{one}`" not in doc and not re.search(rf"import .*\b{one}\b|\.{one} import", text)
    ]


ROOMS: dict[str, set[str]] = {  # room or module: which others it may import, also inside functions
    "": set(),
    "zoo": set(),
    "sampling": set(),
    "metrics": set(),
    "precision": set(),
    "devices": set(),
    "compiling": set(),
    "files": set(),
    "volume": {"", "files"},
    "scan_checks": {"volume", "zoo"},
    "phantom": {"volume"},
    "pictures": {"files", "volume"},
    "hub": {"", "files", "zoo"},
    "datasets": {"files", "hub", "scan_checks", "pictures", "volume", "zoo"},
    "evaluation": {"datasets", "files", "metrics", "volume"},
    "shifts": {"datasets", "files", "scan_checks", "volume"},
    "inference": {
        "compiling",
        "datasets",
        "devices",
        "files",
        "hub",
        "metrics",
        "precision",
        "scan_checks",
        "volume",
        "zoo",
    },
    "encoders": {"hub", "inference", "loading", "zoo"},
    "heads": {"encoders", "files", "hub", "inference", "loading", "volume", "zoo"},
    "loading": {"devices", "encoders", "files", "heads", "hub"},
    "convert": {"", "encoders", "files", "heads", "hub", "inference", "scan_checks", "volume", "zoo"},
    "similarity": {"files", "inference", "sampling"},
    "finetuning": {
        *(
            "datasets",
            "devices",
            "encoders",
            "evaluation",
            "files",
            "heads",
            "hub",
            "inference",
            "loading",
            "metrics",
        ),
        *("pictures", "precision", "sampling", "shifts", "volume", "zoo"),
    },
    "robustness": {
        *(
            "datasets",
            "devices",
            "evaluation",
            "files",
            "heads",
            "hub",
            "inference",
            "loading",
            "metrics",
            "pictures",
        ),
        *("shifts", "volume"),
    },
    "hf": {"encoders", "hub", "loading", "scan_checks", "volume", "zoo"},
    "nnunet": {"encoders", "files", "finetuning", "heads", "zoo"},
    "demo": {"files", "inference", "loading", "metrics", "phantom", "pictures", "volume", "zoo"},
    "cli": {
        *(
            "",
            "compiling",
            "convert",
            "datasets",
            "demo",
            "devices",
            "evaluation",
            "files",
            "finetuning",
            "hub",
            "inference",
            "scan_checks",
            "loading",
            "nnunet",
            "pictures",
        ),
        *("shifts", "similarity", "volume", "zoo"),
    },
}
BACK = {("encoders", "loading"), ("heads", "loading")}
"""The one way back, inside functions: `from_pretrained` calls `load`."""


def room_of(path: Path) -> str:
    """The room or module that a file belongs to; "" for `ctssl/__init__.py`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py").replace("__init__", "")


def imports(path: Path) -> set[tuple[str, bool]]:
    """Rooms that a file imports, each with whether it does so inside a function; not those under TYPE_CHECKING."""
    found: set[tuple[str, bool]] = set()

    def visit(node: ast.AST, deferred: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == "ctssl":
                parts = (child.module or "").split(".")
                names = [parts[1]] if len(parts) > 1 else [alias.name for alias in child.names]
                found.update(("" if name == "__version__" else name, deferred) for name in names)
            elif isinstance(child, ast.Import):
                ours = [alias.name.split(".") for alias in child.names if alias.name.split(".")[0] == "ctssl"]
                found.update(((parts + [""])[1], deferred) for parts in ours)
            visit(child, deferred or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    visit(ast.parse(path.read_text()), False)
    return {(room, deferred) for room, deferred in found if room != room_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_those_that_it_may(path):
    room, found = room_of(path), imports(path)
    assert {name for name, _ in found} <= ROOMS[room], f"{room} may import {sorted(ROOMS[room])}"
    assert not [name for name, deferred in found if (room, name) in BACK and not deferred]


def test_the_table_of_rooms_is_complete_and_has_no_circles_but_one():
    assert set(ROOMS) == {room_of(path) for path in MODULES}
    left = {room: {other for other in others if (room, other) not in BACK} for room, others in ROOMS.items()}
    while free := [room for room, others in left.items() if not others & set(left)]:
        left = {room: others for room, others in left.items() if room not in free}
    assert not left, f"these import one another: {sorted(left)}"


def test_every_arrow_of_the_table_is_used():
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in MODULES:
        used[room_of(path)] |= {name for name, _ in imports(path)}
    spare = {room: sorted(others - used[room]) for room, others in ROOMS.items() if others - used[room]}
    assert not spare, f"nobody needs these arrows: {spare}"


def test_rooms_for_files_load_no_torch():
    rooms = ("files", "volume", "hub", "datasets")
    assert not {"torch", "monai", "timm"} & loaded_by(
        "import " + ", ".join(f"ctssl.{room}" for room in rooms)
    )


def test_every_room_says_what_it_is_for():
    for path in PACKAGE.glob("*/__init__.py"):
        assert (ast.get_docstring(ast.parse(path.read_text())) or "").strip(), path


def longest(function: ast.AST) -> int:
    """Lines of a function without its docstring."""
    assert isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
    first, lines = function.body[0], (function.end_lineno or 0) - function.lineno + 1
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


@pytest.mark.parametrize("folder", ["ctssl", "training"])
def test_no_function_is_longer_than_sixty_lines(folder):
    """Docstrings aside."""
    long = []
    for path in sorted((PACKAGE.parent / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and longest(node) > 60:
                long.append(f"{path.relative_to(PACKAGE.parent)}: {node.name}, {longest(node)} lines")
    assert not long, long


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
    nodes = list(ast.walk(ast.parse((PACKAGE / "convert" / "unpickle.py").read_text())))
    calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    loads = [n for n in calls if n.func.attr == "load" and getattr(n.func.value, "id", "") == "torch"]
    keywords = [{k.arg: ast.literal_eval(k.value) for k in n.keywords} for n in loads]
    assert keywords == [{"weights_only": True, "map_location": "cpu"}]
    imported = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}
    assert not any(name.startswith("ctssl") for name in imported)
    users = [path.name for path in MODULES if "import unpickle" in path.read_text()]
    assert users == ["checkpoint.py"]
