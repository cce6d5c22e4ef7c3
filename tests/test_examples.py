"""Every module of the package shows an example, and every example runs."""

import os
import shlex
import shutil
from pathlib import Path

import pytest
from example_names import READY, Names
from examples import ROOT, Example, collect, run
from kaggle_server import KaggleServer

from cspine_kit.cli import VERBS, build_parser

PACKAGE = ROOT / "cspine_kit"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
EXAMPLES = collect(sorted(PACKAGE.rglob("*.py")))
OPTIONAL = {
    "cspine_kit.stack.model.search": "optuna",
    "cspine_kit.data.reader.pixels.lossless": "numba",
}
"""Packages without which a module's example cannot run."""

LONG = {
    "phantom.competition.hostile",
    "ship.kaggle.push",
    "ship.rehearsal.environment",
    "show.report.page",
    "stack.external.run",
}
"""Examples that take ten seconds or more."""


LINKED_BYTES = 100_000
"""Larger files are linked into the desk: the kit replaces files, it does not write into them."""


def _copy(source: str, target: str) -> None:
    if Path(source).stat().st_size > LINKED_BYTES:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def desk_of(run: Path, desk: Path) -> Path:
    """A folder like a clone in which the demo ran: `configs/demo.yaml` holds the tiny chain's
    settings, `oof/demo` and `submissions/demo` what that chain left."""
    shutil.copytree(ROOT / "configs", desk / "configs")
    shutil.copy(run / "configs" / "tiny.yaml", desk / "configs" / "demo.yaml")
    shutil.copy(ROOT / "constraints-kaggle.txt", desk)
    (desk / "competition").symlink_to(run / "competition")
    for name in ("kernels", "oof", "submissions"):
        shutil.copytree(run / name, desk / name, copy_function=_copy)
    for name in ("oof", "submissions"):
        (desk / name / "demo").symlink_to("tiny")
    return desk


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and modification time of every file."""
    files = {p: p.stat() for p in folder.rglob("*") if p.is_file()}
    return {p: (stat.st_size, stat.st_mtime_ns) for p, stat in files.items()}


@pytest.fixture(scope="module")
def finished(run):
    """The tiny chain, which no example may change."""
    before = stamps(run)
    yield run
    assert stamps(run) == before


@pytest.fixture(name="names")
def _names(finished, tmp_path, monkeypatch):
    """The documented names, in a working folder of the example's own, without a network."""
    monkeypatch.chdir(desk_of(finished, tmp_path / "desk"))
    for name in list(os.environ):
        if name.upper().startswith("KAGGLE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with KaggleServer() as service:
        cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        own = service.environment(tmp_path / "home") | {"XDG_CACHE_HOME": cache}
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        yield Names()
        assert service.count("CONNECT") == 0, "an example asked for the network"


def marked(example):
    return pytest.param(
        example, id=str(example), marks=[pytest.mark.slow] if str(example) in LONG else []
    )


@pytest.mark.parametrize("example", [marked(example) for example in EXAMPLES])
def test_example_runs(example, names):
    if example.module in OPTIONAL:
        pytest.importorskip(OPTIONAL[example.module])
    run(example, names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_shows_an_example(path):
    assert any(not example.owner for example in collect([path]))


@pytest.mark.parametrize("name", VERBS)
def test_help_shows_a_command_that_its_verb_understands(name):
    for command in VERBS[name].example.split("; "):
        program, *words = shlex.split(command)
        assert program == "cspine"
        assert build_parser().parse_args(words).verb == name


def test_readers_find_every_name_in_the_docs():
    text = (ROOT / "docs" / "examples.md").read_text()
    listed = [
        line.split("|")[1].strip(" `") for line in text.splitlines() if line.startswith("| `")
    ]
    told = {
        f"| `{name}` | {make.__doc__} |" for name, make in READY.items() if make.__doc__ is not None
    }
    assert listed == [name for name, make in READY.items() if make.__doc__ is not None]
    assert told <= set(text.splitlines())


def module_of(tmp_path: Path, docstring: str) -> Path:
    path = tmp_path / "room" / "noun.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'"""{docstring}"""\n\nimport numpy as np\n')
    return path


@pytest.mark.parametrize(
    "docstring",
    [
        "A noun. Example::\n\n    absent_name + 1\n\nMore.\n",
        "A noun. Example: `np.zeros(3)[7]`.\n",
        "A noun.\n\n    >>> int(np.zeros(3).sum())\n    1\n",
        "A noun. Example: `cspine info --config absent.yaml`.\n",
    ],
    ids=["block", "inline", "doctest", "command"],
)
def test_a_wrong_example_fails(docstring, tmp_path, monkeypatch):
    path = module_of(tmp_path, docstring)
    monkeypatch.syspath_prepend(tmp_path)
    [example] = collect([path], tmp_path)
    with pytest.raises((AssertionError, NameError, IndexError)):
        run(example, {})


def test_ready_names_stand_behind_the_modules_own(tmp_path, monkeypatch):
    path = module_of(tmp_path, "A noun. Example: `assert np.zeros(spare).size == 2`.\n")
    monkeypatch.syspath_prepend(tmp_path)
    [example] = collect([path], tmp_path)
    run(example, {"np": None, "spare": 2})


@pytest.mark.parametrize(
    ("docstring", "fault"),
    [
        ("A noun.\n\nExample:\n\n    np.zeros(3)\n", "unknown form"),
        ("A noun. Examples: `a` and `b`.\n", "unknown form"),
    ],
    ids=["not literal", "several"],
)
def test_an_example_that_would_not_be_run_is_an_error(docstring, fault, tmp_path):
    with pytest.raises(ValueError, match=fault):
        collect([module_of(tmp_path, docstring)], tmp_path)


def test_a_placeholder_hides_nothing():
    example = Example("cspine_kit.core.paths", "", 1, "Competition(Path('x'), ...)")
    with pytest.raises(ValueError, match="placeholder"):
        run(example, {})


def test_all_forms_are_found(tmp_path):
    text = (
        "A noun. Example::\n\n    a = 1\n\n    b = 2\n\nThen example words; Example:\n`c(\nd)`.\n\n"
        "    >>> 1 + 1\n    2\n"
    )
    path = module_of(tmp_path, text)
    path.write_text(
        path.read_text() + '\nclass C:\n    def f(self):\n        """Example: `1`."""\n'
    )
    found = [(str(e), e.text) for e in collect([path], tmp_path)]
    assert found[:2] == [("room.noun", "a = 1\n\nb = 2"), ("room.noun#2", "c( d)")]
    assert found[2][0] == "room.noun#3" and ">>> 1 + 1\n2" in found[2][1].replace("    ", "")
    assert found[3] == ("room.noun:C.f", "1")
