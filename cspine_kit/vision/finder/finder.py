"""A level finder: vertebra models that speak together on a coarse volume, and the one that ships.

In: nothing, or the vertebra models of a bundle. Out: a `LevelFinder`. Example::

    finder = shipped_finder()
    finder.levels(volume)[["level", "present", "center_z_mm", "confidence", "source"]]
    finder.card["about"]                               # trained on synthetic scans only ...

The finder that ships learned from phantoms alone (`make finder`): `source` of its levels says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cspine_kit.core.config import VolumesConfig
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.execution import usable_cores
from cspine_kit.core.paths import FINDER
from cspine_kit.core.runs import file_hash, read_json
from cspine_kit.data.confidence import Calibration
from cspine_kit.data.levels import by_finder
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.names import WEIGHTS_FILE
from cspine_kit.vision.nets.heads import Network
from cspine_kit.vision.nets.store import load_model
from cspine_kit.vision.predict import devices, predict
from cspine_kit.vision.tasks.vertebra import combined, decode_study

CARD_FILE = "card.json"

BATCH = 64
"""Slices at once."""


@dataclass(frozen=True)
class LevelFinder:
    """Vertebra models whose logits are averaged and decoded once.

    Attributes:
        models: on one device.
        calibration: what the decode's belief is worth.
        volumes: how scans are read for them.
        batch_size: slices at once.
        card: what the shipped one says of itself; empty for models of a run.
    """

    models: Sequence[Network]
    calibration: Calibration
    volumes: VolumesConfig
    batch_size: int = BATCH
    card: dict[str, Any] = field(default_factory=dict)

    def rows(self, coarse: Volume) -> pd.DataFrame:
        """What the models together say of each slice: rows of the `vertebra` table.

        Args:
            coarse: the coarse volume of a scan, read as `volumes` says.

        Raises:
            StudyError: a network gives no finite numbers.
        """
        said = predict(dict(enumerate(self.models)), coarse, None, self.batch_size)
        return combined([one.require() for one in said.values()])

    def decoded(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Seven rows of the `levels` table, without study and fold, of what `rows` said."""
        found = self.calibration.applied(decode_study(rows))
        return by_finder(found) if all(model.synthetic for model in self.models) else found

    def levels(self, coarse: Volume) -> pd.DataFrame:
        """`decoded` of `rows`."""
        return self.decoded(self.rows(coarse))


def shipped_finder(folder: Path = FINDER, device: str | None = None) -> LevelFinder:
    """The finder that ships with the kit, or one that `cspine finder` wrote elsewhere.

    Args:
        folder: of its files.
        device: where it runs; the first GPU, else the CPU.

    Raises:
        ArtifactError: a file is missing, or the weights are not those that the card describes.
    """
    try:
        card = read_json(folder / CARD_FILE)
        volumes, told = VolumesConfig.model_validate(card["volumes"]), card["weights_sha256"]
        found = file_hash(folder / WEIGHTS_FILE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder} holds no level finder: {error}; install the kit again, or make finder"
        ) from error
    if found != told:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE} is not what {CARD_FILE} describes: its SHA-256 is {found}; "
            "install the kit again, or make finder"
        )
    torch.set_num_threads(usable_cores())
    model = load_model(folder).to(device or devices()[0])
    return LevelFinder([model], Calibration.load(folder), volumes, card=card)
