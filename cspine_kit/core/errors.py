"""The kit's errors: each names the item, the value got and the next step.

In: nothing. Out: exception classes, all derived from `CSpineError`, which the CLI prints without a
traceback. Example::

    >>> str(StudyError("1.2.3", "no readable slice", "see cspine inspect"))
    'study 1.2.3: no readable slice; see cspine inspect'
"""


class CSpineError(Exception):
    """Base of every error that the kit raises on purpose."""


class ConfigError(CSpineError):
    """A config file is wrong: names the file, the key and the nearest valid key."""


class DataError(CSpineError):
    """Input files are missing or contradict each other."""


class StudyError(DataError):
    """One study cannot be used. Costs that study and no other."""

    def __init__(self, study_uid: str, problem: str, next_step: str = "") -> None:
        self.study_uid = study_uid
        self.problem = problem
        super().__init__(f"study {study_uid}: {problem}" + (f"; {next_step}" if next_step else ""))


class TableError(CSpineError):
    """A table breaks its contract: names the table, the column and the rows."""


class SubmissionError(CSpineError):
    """A submission would be refused or scored wrongly: names the rows."""


class Unfinished(CSpineError):
    """Work stopped before its end, as it was asked to: what is done is kept, the same call goes on
    from there."""


class ArtifactError(CSpineError):
    """A file of a run or bundle is missing, stale, or not what its hash says."""
