"""The examples of the package's docstrings: found by their form, run as a reader would paste them.

In: Python files. Out: `Example`s, each of which runs in a namespace of its own. Three forms count:
`Example::` with an indented block, an inline "Example: `code`", and lines after `>>>`, whose output
is compared. Example: `collect([ROOT / "cspine_kit" / "core" / "paths.py"])`.
"""

import ast
import doctest
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cspine_kit.cli import main

ROOT = Path(__file__).resolve().parents[1]

BLOCK = re.compile(r"\bExample::\n\n((?:[ ]{4}.*\n|[ ]*\n)+)")
INLINE = re.compile(r"\bExample:\s+`([^`]+)`")
ANY = re.compile(r"\bExamples?\s*:")
PROMPT = ">>> "
COMMANDS = ("cspine ", "python -m cspine_kit ")


@dataclass(frozen=True)
class Example:
    """One example: the module and the class or function it documents, and its text."""

    module: str
    owner: str
    number: int
    text: str

    def __str__(self) -> str:
        """Its name among the tests."""
        place = ":".join(filter(None, [self.module.removeprefix("cspine_kit."), self.owner]))
        return place + (f"#{self.number}" if self.number > 1 else "")

    @property
    def is_command(self) -> bool:
        """True for what is typed into a shell."""
        return self.text.startswith(COMMANDS)

    @property
    def code(self) -> str:
        """Its Python without prompts and expected output."""
        if PROMPT not in self.text:
            return self.text
        return "".join(part.source for part in doctest.DocTestParser().get_examples(self.text))

    def wants(self) -> set[str]:
        """Names that its Python reads and does not bind itself.

        Raises:
            ValueError: it holds `...`, which stands for something that a reader has to guess.
        """
        nodes = list(ast.walk(ast.parse(self.code)))
        if any(isinstance(node, ast.Constant) and node.value is Ellipsis for node in nodes):
            raise ValueError(f"example {self} holds a placeholder `...`:\n{self.text}")
        names = [node for node in nodes if isinstance(node, ast.Name)]
        return {n.id for n in names} - {n.id for n in names if isinstance(n.ctx, ast.Store)}


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Qualified name ("" for the module) and docstring of everything documented in a file."""
    pending: list[tuple[str, ast.AST]] = [("", tree)]
    while pending:
        name, node = pending.pop(0)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, ast.get_docstring(node) or ""
        for child in ast.iter_child_nodes(node):
            own = getattr(child, "name", None)
            pending.append((".".join(filter(None, [name, own])) if own else name, child))


def examples_of(docstring: str) -> list[str]:
    """Texts of the examples of one docstring, in their order.

    Raises:
        ValueError: something is called an example but has none of the forms.
    """
    found: list[tuple[int, str]] = []
    rest = docstring + "\n"
    for form in (BLOCK, INLINE):
        for match in form.finditer(rest):
            text = textwrap.dedent(match[1]).strip("\n")
            found.append((match.start(), text if form is BLOCK else " ".join(text.split())))
        rest = form.sub(lambda match: " " * len(match[0]), rest)
    if PROMPT in rest:
        found.append((rest.index(PROMPT), inspect.cleandoc(rest)))
    if ANY.search(rest):
        raise ValueError(f"an example of an unknown form, which no test would run:\n{docstring}")
    return [text for _, text in sorted(found)]


def collect(files: Iterable[Path], root: Path = ROOT) -> list[Example]:
    """Every example of some files below `root`.

    Raises:
        ValueError: as `examples_of`; names the file.
    """
    found = []
    for path in files:
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for owner, docstring in _docstrings(ast.parse(path.read_text())):
            try:
                texts = examples_of(docstring)
            except ValueError as error:
                raise ValueError(f"{path}: {owner or 'module'}: {error}") from error
            found += [Example(module, owner, n, text) for n, text in enumerate(texts, start=1)]
    return found


def run(example: Example, ready: Mapping[str, object]) -> None:
    """Run one example in the current folder with its module's public names.

    Args:
        example: what to run.
        ready: names that examples may use besides; only those that this one reads are looked up.

    Raises:
        AssertionError: a command fails, or output differs from what the example shows.
        Exception: whatever the example raises.
    """
    if example.is_command:
        return _run_command(example)
    wanted = example.wants()
    own = vars(importlib.import_module(example.module))
    space = {name: value for name, value in own.items() if not name.startswith("_")}
    space |= {name: ready[name] for name in sorted(wanted - set(space)) if name in ready}
    if PROMPT not in example.text:
        exec(compile(example.text, f"<example {example}>", "exec"), space)
        return None
    test = doctest.DocTestParser().get_doctest(example.text, space, str(example), None, None)
    told: list[str] = []
    outcome = doctest.DocTestRunner(verbose=False).run(test, out=told.append)
    assert outcome.attempted and not outcome.failed, "".join(told)
    return None


def _run_command(example: Example) -> None:
    words = shlex.split(example.text)
    if words[0] == "cspine":
        assert main(words[1:]) == 0, f"`{example.text}` failed"
        return
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"`{example.text}` failed: {done.stderr}"
