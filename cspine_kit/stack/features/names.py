"""Names of features: `<member>__<signal>__<statistic>`, and what the parts mean.

In: column names. Out: their parts. Example::

    signal_of("a__fracture__max")     # "fracture"
"""

from collections.abc import Iterable

ALL = "all"
"""Member of features that belong to no single member."""

RAW = "raw"
"""Member of columns that describe a patient or a study."""

SITE = "site"
"""Signal of what slice positions say about scanner and protocol."""

EXTERNAL = "external"
"""Signal of somebody else's study scores, in log-odds."""

COLUMN = "column"
"""Signal of raw columns of any kind; NaN where not known."""

OWN_ODDS, OVERALL_ODDS = f"{EXTERNAL}__own", f"{EXTERNAL}__overall"
"""What an external member says of a level, of a study."""

LEVEL_LOGIT, STUDY_LOGIT, BOX_SCORE = "level__logit", "study__logit", "boxes__score"
"""What a member says of a level, of a study, and the score of its best box in a level."""


def signal_of(column: str) -> str:
    """The middle part of a feature's name."""
    return column.split("__")[1]


def feature_columns(columns: Iterable[str]) -> list[str]:
    """Names of features among column names, in order."""
    return [c for c in columns if c.count("__") == 2]


def slice_members(columns: Iterable[str]) -> list[str]:
    """Members whose slices are described, in order."""
    ends = "__fracture__weighted"
    return [c.removesuffix(ends) for c in columns if c.endswith(ends)]


def level_members(columns: Iterable[str]) -> list[str]:
    """Members that judge levels, in order."""
    ends = f"__{LEVEL_LOGIT}"
    return [c.removesuffix(ends) for c in columns if c.endswith(ends)]


def score_columns_of(columns: Iterable[str]) -> list[str]:
    """Columns in which a member judges more than a slice, in order."""
    ends = tuple(f"__{name}" for name in (LEVEL_LOGIT, STUDY_LOGIT, BOX_SCORE))
    return [c for c in columns if c.endswith(ends)]


def own_members(columns: Iterable[str]) -> list[str]:
    """Members of the kit's own networks: of slices first, then those that judge more."""
    columns = list(columns)
    judged = [c.split("__")[0] for c in score_columns_of(columns)]
    return list(dict.fromkeys([*slice_members(columns), *judged]))


def external_columns(columns: Iterable[str]) -> list[str]:
    """Columns in which an external member speaks, in order."""
    ends = (f"__{OWN_ODDS}", f"__{OVERALL_ODDS}")
    return [c for c in columns if c.endswith(ends) and not c.startswith(f"{ALL}__")]


def external_members(columns: Iterable[str]) -> list[str]:
    """External members, in order."""
    return list(dict.fromkeys(c.split("__")[0] for c in external_columns(columns)))
