"""Work that takes its time in one piece: a line that tells for how long, and what is going on.

In: a title, or a command. Out: how the command ended and what it said. Example::

    done = run_command(["echo", "hello"], "greeting")
    done.returncode, done.stdout, done.stderr      # 0, "hello\\n", ""
"""

import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

TICK_S = 1.0
SHOWN = 60
"""Characters of what is going on."""


@contextmanager
def waiting(title: str) -> Iterator[Callable[[str], None]]:
    """Show the seconds that the block has run, renewed each second, like any other progress bar.

    Yields:
        A function that takes a few words on what is going on.
    """
    from tqdm import tqdm

    ended = threading.Event()
    with tqdm(desc=title, bar_format="{desc}: {elapsed}{postfix}") as bar:

        def tick() -> None:
            while not ended.wait(TICK_S):
                bar.refresh()

        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        try:
            yield lambda words: bar.set_postfix_str(words[:SHOWN], refresh=False)
        finally:
            ended.set()
            ticker.join()


def run_command(
    command: Sequence[str], title: str, *, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its last line of output stands beside the seconds it has run.

    Args:
        command: program and arguments.
        title: of the line shown.
        env: its whole environment; default: this process's.

    Returns:
        Exit code and both streams; a failure is the caller's to explain.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as errors, waiting(title) as tell:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
        )
        lines = []
        try:
            for line in process.stdout or ():
                lines.append(line)
                tell(line.strip())
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        return subprocess.CompletedProcess(command, code, "".join(lines), errors.read())


def commit_of_kit() -> str:
    """The commit that the kit's sources are checked out at, "+" behind it where they were changed;
    empty for an installed package."""
    here = Path(__file__).resolve().parents[2]
    try:
        told = [
            subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "cspine_kit"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    return told[0].stdout.strip() + ("+" if told[1].stdout.strip() else "")
