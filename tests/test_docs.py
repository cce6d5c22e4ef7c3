"""The docs say what is there: every command parses, every file, link, module and message exists."""

import ast
import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_imports import ALLOWED

from cspine_kit.cli import VERBS, build_parser

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDER_NOTES = [ROOT / "oof" / "README.md", ROOT / "submissions" / "README.md"]
each_doc = pytest.mark.parametrize(
    "doc", [*DOCS, *FOLDER_NOTES], ids=lambda p: str(p.relative_to(ROOT))
)

WRITTEN_BY_RUNS = ("oof/", "submissions/", "data/")
SHORTEST = 8
"""Characters of a message's part that are worth looking up."""


def fences(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of every fenced block; commands stand in those without a language."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Inline code outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def commands(text: str) -> list[str]:
    """Every `cspine ...` and `make ...` of a text."""
    lines = [line for kind, block in fences(text) if not kind for line in block.splitlines()]
    found = []
    for line in [*lines, *spans(text)]:
        for part in re.split(r"&&|;", line.split("  #")[0]):
            words = part.strip().removeprefix(".venv/bin/")
            if re.match(r"(cspine|make) \S", words):
                found.append(words)
    return found


def cspine_of_make(command: str) -> list[str]:
    """What a make command would run of `cspine`, without running it."""
    named = shlex.split(command)[1:]
    done = subprocess.run(
        ["make", "-n", *named], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    known = re.findall(r"\$\((\w+)\)", (ROOT / "Makefile").read_text())
    for word in named:
        assert "=" not in word or word.split("=")[0] in known, f"{command}: no variable {word}"
    return [line.split("bin/", 1)[1] for line in done.stdout.splitlines() if "bin/cspine" in line]


def parse(command: str) -> None:
    """Parse a `cspine` command as the console script would; a bare verb only has to exist."""
    arguments = shlex.split(command)[1:]
    if len(arguments) == 1 and arguments[0] in VERBS:
        return
    try:
        build_parser().parse_args(arguments)
    except SystemExit as end:
        assert end.code == 0, f"the CLI refuses: {command}"


@each_doc
def test_every_command_parses(doc):
    for command in commands(doc.read_text()):
        for line in cspine_of_make(command) if command.startswith("make") else [command]:
            parse(line)


def test_commands_are_found_and_wrong_ones_refused():
    text = (
        "```\nmake demo && cspine info  # a note\n```\n`make push ARGS=--dry-run`, `cspine_kit/x`"
    )
    assert commands(text) == ["make demo", "cspine info", "make push ARGS=--dry-run"]
    assert "cspine push --config configs/demo.yaml --dry-run" in cspine_of_make(commands(text)[2])
    with pytest.raises(AssertionError, match="no variable COFNIG"):
        cspine_of_make("make oof COFNIG=configs/demo.yaml")
    with pytest.raises(AssertionError, match="make nothing"):
        cspine_of_make("make nothing")
    with pytest.raises(AssertionError, match="the CLI refuses: cspine kernel --hour"):
        parse("cspine kernel --hourz 1")


def test_every_verb_is_told():
    named = {
        line.split()[1]
        for doc in DOCS
        for command in commands(doc.read_text())
        for line in (cspine_of_make(command) if command.startswith("make") else [command])
    }
    assert set(VERBS) <= named


@each_doc
def test_every_link_leads_somewhere(doc):
    for target in re.findall(r"\]\(([^)\s]+)\)", doc.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        linked = (doc.parent / path).resolve() if path else doc
        assert linked.exists(), f"{doc.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{doc.name} links to {target}"


def module_has(dotted: str) -> bool:
    """Whether a dotted name is a module or folder of the kit, or something defined in one."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:n])
        file = place.with_suffix(".py") if not place.is_dir() else place / "__init__.py"
        if file.exists():
            tree = ast.parse(file.read_text())
            defined = {getattr(node, "name", "") for node in tree.body}
            return n == len(parts) or (n == len(parts) - 1 and parts[-1] in defined)
    return False


@each_doc
def test_every_file_and_module_named_exists(doc):
    text = doc.read_text()
    for dotted in re.findall(r"\bcspine_kit(?:\.\w+)+", text):
        assert module_has(dotted), f"{doc.name} names {dotted}"
    tops = "|".join(re.escape(p.name) for p in ROOT.iterdir() if not p.name.startswith("."))
    for named in re.findall(rf"(?<![\w/.-])(?:{tops})(?:/[\w.-]+)*", text):
        if not named.startswith(WRITTEN_BY_RUNS):
            assert (ROOT / named.rstrip(".")).exists(), f"{doc.name} names {named}"


def test_a_wrong_module_is_noticed():
    assert module_has("cspine_kit.infer.run.run_kernel") and module_has("cspine_kit.stack.model")
    assert not module_has("cspine_kit.infer.run.run_kernels")
    assert not module_has("cspine_kit.ship.kernel")


def test_the_readme_tells_the_rule_of_imports():
    [rule] = re.findall(r"`(cli -> [^`]+)`", (ROOT / "README.md").read_text())
    steps = [re.findall(r"\w+", step) for step in rule.split("->")]
    assert {room for step in steps for room in step} | {"phantom"} == set(ALLOWED)
    for i, step in enumerate(steps):
        below = {room for later in steps[i + 1 :] for room in later}
        for room in step:
            assert ALLOWED[room] - {"phantom"} <= below, f"{room} imports more than {rule}"
            assert not ALLOWED[room] & set(step)
    assert ALLOWED["phantom"] == {"core"}


def test_the_walk_names_files_that_a_run_leaves(run):
    text = (ROOT / "docs" / "walk.md").read_text()
    checked = 0
    for root, table in re.findall(
        r"^\| in `(\w+)/<name>` \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M
    ):
        for row in table.splitlines():
            for named in re.findall(r"`([\w./]+)`", row.split("|")[1]):
                assert (run / root / "tiny" / named).exists(), f"no {root}/<name>/{named}"
                checked += 1
    assert checked > 20


def texts_of(files: list[Path]) -> str:
    """Every string constant of some sources, one a line; parts of f-strings are apart."""
    return "\n".join(
        node.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def kit_sources() -> list[Path]:
    return [*(ROOT / "cspine_kit").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]


def client_sources() -> list[Path]:
    found = importlib.util.find_spec("kaggle")
    assert found is not None and found.origin is not None
    return list(Path(found.origin).parent.rglob("*.py"))


@pytest.mark.parametrize(
    ("section", "sources"),
    [
        ("The kit, before anything is sent", kit_sources),
        ("The kit, during a push", kit_sources),
        ("The kit, during a training", kit_sources),
        ("The client", client_sources),
    ],
)
def test_every_message_in_the_table_is_printed_by_someone(section, sources):
    text = (ROOT / "docs" / "kaggle.md").read_text()
    table = text.split(f"## {section}\n")[1].split("\n## ")[0]
    printed = texts_of(sources())
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert rows
    for message in (span for row in rows for span in re.findall(r"`([^`]+)`", row)):
        parts = [part.strip() for part in message.split("…")]
        long = [part for part in parts if len(part) >= SHORTEST]
        assert long, f"{message!r} holds nothing to look up"
        for part in long:
            assert part in printed, f"nobody prints {part!r}"
