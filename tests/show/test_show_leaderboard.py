"""The ledger only grows, says a thing once, and stands beside the real leaderboard's lines."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from cspine_kit.core.config import load_config
from cspine_kit.core.errors import DataError
from cspine_kit.show.leaderboard import (
    COLUMNS,
    Entry,
    add_entry,
    add_run,
    place,
    read_ledger,
    render,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ENTRY = Entry(
    name="one, with a comma",
    competition="real",
    submission="abc",
    metric_per_exam=0.41,
    metric_global=0.42,
    commit="c",
)


def test_ledger_appends_and_never_rewrites(tmp_path: Path) -> None:
    ledger = tmp_path / "leaderboard.csv"
    assert add_entry(ledger, ENTRY)
    first = ledger.read_bytes()
    assert not add_entry(ledger, replace(ENTRY, created="later", metric_per_exam=0.1))
    assert ledger.read_bytes() == first
    assert add_entry(ledger, replace(ENTRY, submission="def"))
    assert add_entry(ledger, replace(ENTRY, lb_public=0.45, lb_private=0.47))
    assert not add_entry(ledger, replace(ENTRY, lb_public=0.45, lb_private=0.47))
    assert ledger.read_bytes().startswith(first)
    frame = read_ledger(ledger)
    assert frame["name"].tolist() == [ENTRY.name] * 3
    assert frame["lb_private"].tolist()[2] == pytest.approx(0.47)


def test_render_places_entries_between_the_lines(tmp_path: Path) -> None:
    ledger = tmp_path / "leaderboard.csv"
    add_entry(ledger, ENTRY)
    add_entry(ledger, replace(ENTRY, name="late", lb_private=0.5217))
    text = render(read_ledger(ledger))
    order = [text.index(word) for word in ("gold line", ENTRY.name, "silver line", "bronze line")]
    assert order == sorted(order)
    assert text.index("bronze line") < text.index("late") < text.index("median line")
    assert "third-hand" in text
    assert "883" in text
    assert place(0.2) == "gold or better"
    assert place(0.6) == "below the median"


def test_phantoms_have_no_rank_and_stand_apart(tmp_path: Path) -> None:
    ledger = tmp_path / "leaderboard.csv"
    add_entry(ledger, ENTRY)
    add_entry(ledger, replace(ENTRY, name="toy", competition="phantom", metric_per_exam=0.11))
    text = render(read_ledger(ledger))
    real, toys = text.split("phantoms (")
    assert "gold line" in real and ENTRY.name in real and "silver or better" in real
    assert "toy" not in real
    assert "0.1100  toy" in toys and "or better" not in toys and "median" not in toys


def test_empty_and_foreign_ledgers(tmp_path: Path) -> None:
    empty = read_ledger(tmp_path / "none.csv")
    assert tuple(empty.columns) == COLUMNS
    assert "0 entries" in render(empty)
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="has columns"):
        read_ledger(tmp_path / "foreign.csv")


def test_a_run_becomes_one_row(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "demo.yaml")
    row = {"model": "shipped", "ships": True, "shipped_model": "stack"}
    for form in ("per_exam", "global"):
        row |= {form: 0.4, f"{form}_low": 0.3, f"{form}_high": 0.5}
        row |= {f"{form}_fold_mean": 0.4, f"{form}_fold_std": 0.02, f"test_{form}": 0.39}
    table = pd.DataFrame([row, row | {"model": "best_constant", "ships": False, "per_exam": 0.6}])
    submission = tmp_path / "submission.csv"
    submission.write_text("row_id,fractured\na,0.5\n")
    ledger = tmp_path / "leaderboard.csv"
    assert add_run(ledger, config, table, submission, kernel_minutes=1.5)
    assert not add_run(ledger, config, table, submission)
    entry = read_ledger(ledger).iloc[0]
    assert entry["name"] == "demo"
    assert entry["competition"] == "phantom"
    assert entry["ships"] == "stack"
    assert entry["baselines"] == "best_constant=0.6000"
    assert entry["truth_per_exam"] == pytest.approx(0.39)
    assert "kernel 1.5 min" in render(read_ledger(ledger))
