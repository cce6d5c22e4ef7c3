"""The ledger of local submissions; real ones stand beside the lines of the real final leaderboard.

A phantom is easier than the competition, so its runs have no rank and a table of their own.

In: scores and a submission. Out: `submissions/leaderboard.csv`, append-only. Example::

    ledger = Path("ledger.csv")
    scores = {"metric_per_exam": 0.41, "metric_global": 0.40}
    add_entry(ledger, Entry(name="demo", competition=PHANTOM, submission="0123", **scores))
    print(render(read_ledger(ledger)))

A row is never changed: when the public and private scores of a pushed submission are known, a new
row with the same name and submission hash carries them, and `render` shows the last row of each.
"""

import csv
import os
import subprocess
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from cspine_kit.core.config import Config
from cspine_kit.core.errors import DataError
from cspine_kit.core.runs import file_hash, fingerprint, publish

TEAMS = 883
FINAL_LINES: tuple[tuple[str, float], ...] = (
    ("gold", 0.2767),
    ("silver", 0.4900),
    ("bronze", 0.5212),
    ("median", 0.5223),
)
"""Private scores at the medal lines and the median of 883 teams; third-hand (computed by others
from MLE-bench's copy of the Kaggle leaderboard)."""

HASH_DIGITS = 12
PHANTOM, REAL = "phantom", "real"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger; scores are out-of-fold, None where not known.

    `competition` is "phantom" where the config writes its own, else "real".
    `metric_*_low` / `_high` are 95 % bootstrap intervals; `folds` lists metric A per fold model;
    `baselines` holds `model=score` pairs of the configured form.
    """

    name: str
    competition: str
    submission: str
    metric_per_exam: float
    metric_global: float
    metric_per_exam_low: float | None = None
    metric_per_exam_high: float | None = None
    metric_global_low: float | None = None
    metric_global_high: float | None = None
    config: str = ""
    folds: str = ""
    ships: str = ""
    baselines: str = ""
    truth_per_exam: float | None = None
    truth_global: float | None = None
    kernel_minutes: float | None = None
    lb_public: float | None = None
    lb_private: float | None = None
    commit: str = ""
    created: str = ""


COLUMNS = tuple(field.name for field in fields(Entry))
_WHAT_COUNTS = ("name", "submission", "lb_public", "lb_private")
"""Two rows equal in these say the same; the second is not added."""


def current_commit(folder: Path) -> str:
    """Short hash of the checkout that `folder` lies in, "" outside of one."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def read_ledger(path: Path) -> pd.DataFrame:
    """Rows in the order they were added; an absent file is an empty ledger.

    Raises:
        DataError: the file has other columns.
    """
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    text = dict.fromkeys(("name", "submission", "config", "commit", "created"), str)
    frame = pd.read_csv(path, dtype=text, keep_default_na=True)
    if tuple(frame.columns) != COLUMNS:
        raise DataError(
            f"ledger {path} has columns {list(frame.columns)}, wanted {list(COLUMNS)}; where only "
            f"competition is missing, add it ({PHANTOM} or {REAL}), else move the file away"
        )
    return frame


def add_entry(path: Path, entry: Entry) -> bool:
    """Append one row; the rows before it keep their bytes.

    Returns:
        False where the ledger already holds this name, submission and leaderboard score.
    """
    filled = asdict(entry) | {
        "created": entry.created or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": entry.commit or current_commit(path.parent if path.parent.exists() else Path()),
    }
    row = {name: _text(filled[name]) for name in COLUMNS}
    known = read_ledger(path)
    old = path.read_text() if path.exists() else ",".join(COLUMNS) + "\n"
    if len(known):
        with path.open(newline="") as handle:
            for past in csv.DictReader(handle):
                if all(past[name] == row[name] for name in _WHAT_COUNTS):
                    return False
    with publish(path) as temporary:
        temporary.write_text(old if old.endswith("\n") else old + "\n")
        with temporary.open("a", newline="") as handle:
            csv.DictWriter(handle, COLUMNS, lineterminator="\n").writerow(row)
            handle.flush()
            os.fsync(handle.fileno())
    return True


def add_run(
    path: Path,
    config: Config,
    table: pd.DataFrame,
    submission: Path,
    kernel_minutes: float | None = None,
) -> bool:
    """Append a finished run.

    Args:
        path: the ledger.
        config: the run's config.
        table: `stack.scores.table.score_table` with `ships`; columns test_per_exam and
            test_global are taken over where the truth of the test set is known.
        submission: the submission file.
        kernel_minutes: wall time of the kernel.
    """
    shipped = table[table["ships"].astype(bool)].iloc[0]
    form = config.stack.form
    rest = table[~table["ships"].astype(bool)]
    scores: dict[str, Any] = {
        f"metric_{f}{part}": float(shipped[f"{f}{part}"])
        for f in ("per_exam", "global")
        for part in ("", "_low", "_high")
    }
    scores |= {
        f"truth_{f}": float(shipped[f"test_{f}"])
        for f in ("per_exam", "global")
        if f"test_{f}" in table and pd.notna(shipped[f"test_{f}"])
    }
    entry = Entry(
        name=config.name,
        competition=REAL if config.competition.phantom is None else PHANTOM,
        submission=file_hash(submission)[:HASH_DIGITS],
        config=fingerprint(config)[:HASH_DIGITS],
        folds=f"{config.folds.n} folds, A {shipped['per_exam_fold_mean']:.4f} "
        f"+- {shipped['per_exam_fold_std']:.4f}",
        ships=str(shipped["shipped_model"]),
        baselines=" ".join(f"{r['model']}={r[form]:.4f}" for r in rest.to_dict("records")),
        kernel_minutes=kernel_minutes,
        **scores,
    )
    return add_entry(path, entry)


def add_scores(path: Path, name: str, *, public: float | None, private: float | None) -> bool:
    """Append the last row of a run once more, with what the service scored it at.

    Args:
        path: the ledger.
        name: of the run.
        public, private: leaderboard scores, None where the service shows none.

    Returns:
        False where the ledger holds these scores already.

    Raises:
        DataError: the ledger holds no row of this run.
    """
    rows = read_ledger(path)
    own = rows[rows["name"] == name]
    if own.empty:
        raise DataError(f"ledger {path} holds no row of {name}; run make score first")
    known: dict[str, Any] = own.iloc[-1].dropna().to_dict()
    scored = {"lb_public": public, "lb_private": private, "created": ""}
    return add_entry(path, Entry(**{**known, **scored}))


def place(score: float) -> str:
    """Where a score would have stood: the best line it reaches."""
    for line, value in FINAL_LINES:
        if score <= value:
            return f"{line} or better"
    return "below the median"


def _line(entry: dict[str, Any]) -> tuple[float, str]:
    """The score an entry stands at, and its text: private, else public, else out-of-fold A."""
    known = [("lb_private", "private"), ("lb_public", "public"), ("metric_per_exam", "OOF A")]
    column, kind = next((c, k) for c, k in known if pd.notna(entry[c]))
    value = float(entry[column])
    low, high = entry["metric_per_exam_low"], entry["metric_per_exam_high"]
    interval = f" (95 % {low:.4f} to {high:.4f})" if kind == "OOF A" and pd.notna(low) else ""
    text = f"{value:.4f}  {entry['name']} [{kind}]{interval}, OOF B {entry['metric_global']:.4f}"
    if pd.notna(entry["truth_per_exam"]):
        text += f", own truth A {entry['truth_per_exam']:.4f} B {entry['truth_global']:.4f}"
    if pd.notna(entry["kernel_minutes"]):
        text += f", kernel {entry['kernel_minutes']:.1f} min"
    if entry["competition"] == REAL:
        text += f", {place(value)}"
    return value, f"{text}, commit {entry['commit'] if pd.notna(entry['commit']) else '?'}"


def render(ledger: pd.DataFrame) -> str:
    """The latest row of every real entry among the real leaderboard's lines, best score first; then
    those of phantoms, without a rank.

    An entry stands at its private score, else its public one, else out-of-fold metric A, and the
    text says which.
    """
    latest = ledger.drop_duplicates(["name", "submission"], keep="last")
    lines: dict[str, list[tuple[float, str]]] = {REAL: [], PHANTOM: []}
    for entry in latest.to_dict("records"):
        lines[entry["competition"]].append(_line(entry))
    real = [
        (value, f"{value:.4f}  {'-' * 4} {line} line of the final leaderboard")
        for line, value in FINAL_LINES
    ]
    text = ["the competition", *(line for _, line in sorted([*real, *lines[REAL]]))]
    if lines[PHANTOM]:
        text += ["", "phantoms (made-up studies, easier than real ones: no rank)"]
        text += [line for _, line in sorted(lines[PHANTOM])]
    text.append(
        f"\n{len(latest)} entries. Final leaderboard: {TEAMS} teams; its lines are third-hand "
        "(computed by others from MLE-bench's copy). An out-of-fold score is on the training "
        "studies, so its place is a guide, not a rank."
    )
    return "\n".join(text)
