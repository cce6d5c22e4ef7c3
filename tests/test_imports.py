"""Imports point one way, and the light commands stay light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cspine_kit"

ALLOWED = {
    "core": set(),
    "phantom": {"core"},
    "data": {"core"},
    "vision": {"core", "data"},
    "stack": {"core", "data"},
    "infer": {"core", "data", "vision", "stack"},
    "ship": {"core", "data", "vision", "stack", "infer"},
    "show": {"core", "data", "vision", "stack", "infer"},
    "cli": {"core", "phantom", "data", "vision", "stack", "infer", "ship", "show"},
}
OWNERS = {
    "torch": {"vision"},
    "timm": {"vision"},
    "torchvision": {"vision"},
    "accelerate": {"vision"},
    "lightgbm": {"stack"},
    "pytorch_grad_cam": {"vision"},
    "pydicom": {"data", "phantom", "show"},
    "gdcm": {"data", "phantom"},
    "nibabel": {"data", "phantom", "show"},
    "highdicom": {"show"},
    "plotly": {"show"},
    "skimage": {"show"},
    "kaggle": set(),
}
"""Libraries that only these rooms may import; kaggle is run as a command, never imported."""

BLOCKED_IN_KERNEL = (
    *("kaggle", "matplotlib", "nibabel", "wandb", "sklearn", "pandera", "accelerate"),
    *("plotly", "highdicom", "skimage", "pytorch_grad_cam"),
)


def imports_of(path: Path) -> set[str]:
    """Dotted names a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import hides the room"
            found.add(node.module)
    return found


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else parts[0].removesuffix(".py")


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if room_of(p) in ALLOWED)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "cspine_kit" and len(parts) > 1:
            assert parts[1] == room or parts[1] in ALLOWED[room], f"{path} imports {name}"
        assert room in OWNERS.get(parts[0], {room}), f"{path} imports {name}"


def test_no_files_import_each_other_in_a_circle():
    def dotted(path: Path) -> str:
        return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)

    known = {dotted(path) for path in SOURCES}
    graph = {}
    for path in SOURCES:
        names = {
            f"{node.module}.{alias.name}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        graph[dotted(path)] = ((imports_of(path) | names) & known) - {dotted(path)}
    assert len(list(TopologicalSorter(graph).static_order())) == len(known)


def test_the_rule_catches_a_wrong_import(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from cspine_kit.vision.nets.store import load_model\n")
    assert imports_of(wrong) == {"cspine_kit.vision.nets.store"}
    assert "vision" not in ALLOWED["stack"]


BLOCKER = """
import importlib.abc, importlib.machinery, sys
class Blocker(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            return importlib.machinery.ModuleSpec(name, self)
    def exec_module(self, module):
        raise ImportError(module.__name__ + " is blocked")
sys.meta_path.insert(0, Blocker())
"""
"""Only an import fails: torch asks `find_spec` for scikit-learn without wanting to import it."""


def _python(code: str, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter in which `blocked` libraries cannot be imported."""
    command = [sys.executable, "-c", BLOCKER.format(names=set(blocked)) + code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_kernel_slice_imports_without_what_kaggle_need_not_have():
    code = (
        "import cspine_kit.infer.run, cspine_kit.vision.predict, cspine_kit.stack.model.stack\n"
        "import cspine_kit.stack.features.aggregate, cspine_kit.stack.scores.baselines\n"
        "import cspine_kit.data.reader.dicom\n"
        "assert 'pandera' not in sys.modules\n"
    )
    done = _python(code, BLOCKED_IN_KERNEL)
    assert done.returncode == 0, done.stderr


def test_stack_runs_without_torch():
    done = _python("import cspine_kit.stack.pipeline", ("torch", "timm", "torchvision"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["info"]])
def test_light_commands_import_no_heavy_library(arguments):
    code = (
        "import sys\n"
        "from cspine_kit.cli import main\n"
        "try:\n"
        f"    main({arguments})\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "heavy = {'torch', 'pandas', 'lightgbm', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = _python(code)
    assert done.returncode == 0, done.stderr
