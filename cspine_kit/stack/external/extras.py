"""Everything that joins the statistics of a run: stand-ins, external members and raw columns.

In: the stack's section of a config (training), or a folder of the bundle (kernel). Out: features
with more columns. Example::

    from cspine_kit.stack.features.aggregate import aggregate

    extras = Extras.load(paths.stack)               # reads what files this kernel has
    joined = extras.add(aggregate(oof_slices, levels))

Paths are looked up from the folder the process runs in: in a kernel that is where a partner's step
leaves its file. An absent or unreadable file is said in `problems`, and what it would have told is
imputed.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from cspine_kit.core.config import StackConfig
from cspine_kit.core.errors import CSpineError
from cspine_kit.core.runs import read_json, write_json
from cspine_kit.stack.external.features import ExternalModel, add_columns
from cspine_kit.stack.external.read import read_columns, read_scores
from cspine_kit.stack.fallback.scores import StandIns

FILE = "external.json"
"""Its file in the stack's folder."""


@dataclass(frozen=True)
class Extras:
    """Members and columns from elsewhere, and stand-ins for the kit's own members.

    `stand_ins`: for scores of levels, studies and boxes that a member did not give; `columns`: the
    raw columns that the stack was fitted with; `scores`: probabilities by study of the members
    whose file is there; `table`: raw columns, where theirs is.
    """

    model: ExternalModel
    stand_ins: StandIns = field(default_factory=StandIns)
    columns: tuple[str, ...] = ()
    scores: dict[str, pd.DataFrame] = field(default_factory=dict)
    table: pd.DataFrame | None = None
    problems: tuple[str, ...] = ()

    def add(self, features: pd.DataFrame) -> pd.DataFrame:
        """Features of slices with the columns of everything else."""
        return self.add_counted(features)[0]

    def add_counted(self, features: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
        """The same, and the number of imputed studies by member."""
        filled, own = self.stand_ins.fill(features)
        joined, counts = self.model.add(filled, self.scores)
        return add_columns(joined, self.table, self.columns), own | counts

    def save(self, folder: Path, config: StackConfig) -> None:
        """Write external.json: lines, names, and where a kernel looks for files."""
        tests = {e.name: str(e.test) for e in config.external if e.test is not None}
        raw = {"model": vars(self.model), "columns": list(self.columns), "tests": tests}
        raw |= {"stand_ins": vars(self.stand_ins), "table": str(config.columns or "")}
        write_json(folder / FILE, raw)

    @classmethod
    def load(cls, folder: Path) -> "Extras":
        """Read what `save` wrote, and the files it names; a file that fails is a problem, no
        error."""
        raw = read_json(folder / FILE)
        scores, problems = {}, []
        model = ExternalModel(**raw["model"])
        for name in model.names:
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
        stand_ins = StandIns(**raw["stand_ins"])
        return cls(model, stand_ins, tuple(raw["columns"]), scores, table, tuple(problems))
