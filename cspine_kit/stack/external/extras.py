"""Everything that joins the statistics of a run: imputed scores, external members, raw columns.

In: out-of-fold features and files (training), or a folder of the bundle (kernel). Out: features
with more columns. Example::

    from cspine_kit.stack.features.aggregate import aggregate

    extras = Extras.load(paths.stack)               # reads what files this kernel has
    joined, imputed = extras.add(aggregate(oof_slices, levels))

Paths are looked up from the folder the process runs in: in a kernel that is where a partner's step
leaves its file. An absent or unreadable file is said in `problems`, and what it would have told is
imputed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from cspine_kit.core.config import StackConfig
from cspine_kit.core.errors import CSpineError
from cspine_kit.core.runs import read_json, write_json
from cspine_kit.stack.external.features import add_agreement, add_columns, add_scores
from cspine_kit.stack.external.read import Scores, read_columns, read_scores, value_names
from cspine_kit.stack.fallback.scores import ScoreImputer, fit_score_imputer

FILE = "external.json"
"""Its file in the stack's folder."""


@dataclass(frozen=True)
class Extras:
    """Members and columns from elsewhere, and the imputer of scores that are not given.

    `names`: external members; `columns`: raw columns that the stack was fitted with; `scores`:
    probabilities by study of the members whose file is there; `table`: raw columns, where theirs
    is.
    """

    names: tuple[str, ...] = ()
    imputer: ScoreImputer = field(default_factory=ScoreImputer)
    columns: tuple[str, ...] = ()
    scores: dict[str, pd.DataFrame] = field(default_factory=dict)
    table: pd.DataFrame | None = None
    problems: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls, features: pd.DataFrame, given: Sequence[Scores], table: pd.DataFrame | None = None
    ) -> "Extras":
        """On out-of-fold rows of `aggregate`; `table`: of `read_columns`."""
        names, scores = tuple(s.name for s in given), {s.name: s.probs for s in given}
        imputer = fit_score_imputer(add_scores(features, names, scores))
        columns = () if table is None else tuple(value_names(table))
        return cls(names, imputer, columns, scores, table)

    def add(self, features: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
        """Features of slices with the columns of everything else, ordered by unit and level, and
        the number of imputed studies by member, where there are some."""
        filled, counts = self.imputer.fill(add_scores(features, self.names, self.scores))
        agreed = add_agreement(filled, self.names)
        return add_columns(agreed, self.table, self.columns), counts

    def save(self, folder: Path, config: StackConfig) -> None:
        """Write external.json: lines, names, and where a kernel looks for files."""
        tests = {e.name: str(e.test) for e in config.external if e.test is not None}
        raw = {"names": self.names, "columns": self.columns, "tests": tests}
        raw |= {"lines": self.imputer.lines, "table": str(config.columns or "")}
        write_json(folder / FILE, raw)

    @classmethod
    def load(cls, folder: Path) -> "Extras":
        """Read what `save` wrote, and the files it names; a file that fails is a problem, no
        error."""
        raw = read_json(folder / FILE)
        scores, problems = {}, []
        for name in raw["names"]:
            path = raw["tests"].get(name)
            if path is None or not Path(path).is_file():
                problems.append(f"external member {name!r}: no file {path or 'named'}; imputed")
                continue
            try:
                scores[name] = read_scores(name, Path(path)).probs
            except CSpineError as error:
                problems.append(f"external member {name!r} is imputed: {error}")
        table = None
        if raw["columns"] and Path(raw["table"]).is_file():
            try:
                table = read_columns(Path(raw["table"]))
            except CSpineError as error:
                problems.append(f"raw columns are left blank: {error}")
        names, columns = tuple(raw["names"]), tuple(raw["columns"])
        return cls(names, ScoreImputer(raw["lines"]), columns, scores, table, tuple(problems))
