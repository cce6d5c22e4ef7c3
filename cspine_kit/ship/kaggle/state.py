"""How far a push came, and what its stages share.

In: `oof/<name>/push.json`. Out: a checked state, written before and after each stage. Example::

    state = PushState.load(paths.root / "push.json")
    state.code is None           # nothing was sent yet; else its stage is "sending" or "ready"
"""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from cspine_kit.core.config import Config
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import file_hash, read_json, write_json
from cspine_kit.infer.manifest import MANIFEST
from cspine_kit.ship.kaggle.client import KaggleClient
from cspine_kit.ship.kaggle.parcels import Parcel
from cspine_kit.ship.kaggle.process import Waits

logger = logging.getLogger(__name__)


class _Stage(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DatasetStage(_Stage):
    """An upload. `before` is the dataset's version when it was sent, 0 where there was none."""

    ref: str
    digest: str
    stage: Literal["sending", "ready"]
    before: int = 0
    version: int | None = None


class KernelStage(_Stage):
    """The kernel version. `before` is how the session before it ended, `before_log` its log's hash:
    until the service shows another log, what it shows is that session."""

    ref: str
    key: str
    stage: Literal["sending", "running", "failed", "done"]
    before: str | None = None
    before_log: str = ""
    version: int | None = None
    failure: str | None = None


class SubmissionStage(_Stage):
    """The submission of a kernel version; its description finds it again in the service's list."""

    kernel_key: str
    description: str
    stage: Literal["sending", "done"]
    answer: str = ""


class PushState(_Stage):
    """`push.json`."""

    FILE: ClassVar[str] = "push.json"

    weights: DatasetStage | None = None
    code: DatasetStage | None = None
    kernel: KernelStage | None = None
    submission: SubmissionStage | None = None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the state; an absent file is the state of a push that never began.

        Raises:
            ArtifactError: the file is not one of this kit.
        """
        if not path.exists():
            return cls()
        try:
            return cls.model_validate(read_json(path))
        except (ValueError, ValidationError) as error:
            raise ArtifactError(
                f"{path} cannot be read ({error}); move it away, then look at the dataset's and "
                "the kernel's pages before you push again"
            ) from error


@dataclass
class Push:
    """One push: what is sent, the client it goes through, how far it came, what it has to tell."""

    config: Config
    paths: RunPaths
    kernel_folder: Path
    client: KaggleClient
    state: PushState
    parcels: tuple[Parcel, ...] = ()
    lines: list[str] = field(default_factory=list)

    @property
    def waits(self) -> Waits:
        """Patience, as the client has it."""
        return self.client.process.waits

    @property
    def folder(self) -> Path:
        """Where the client works: fetched output, temporary files, `client.log`."""
        return self.client.process.folder

    @cached_property
    def manifest(self) -> str:
        """What tells one upload from another: the hash of the file that holds all others' hashes.

        The kernel prints the same hash of the bundle that it mounted.
        """
        return file_hash(self.paths.bundle / MANIFEST)

    def save(self) -> None:
        """Write the state down."""
        write_json(self.paths.root / self.state.FILE, self.state.model_dump(mode="json"))

    def say(self, line: str) -> None:
        """Tell a result, now and in the report."""
        self.lines.append(line)
        logger.info("%s", line)
