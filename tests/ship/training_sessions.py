"""Sessions of a training without Kaggle: what is mounted, and the output of a first cache session.

In: a folder. Out: `Place`, in which `session` does the work of one session after the other::

    place = Place(tmp_path / "whole", two_steps())
    place.cached(studies=8)
    place.session(hours=1.0)
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from run_folder import tiny_config, write_run

from cspine_kit.core.config import Config
from cspine_kit.core.runs import file_hash, publish, write_json
from cspine_kit.core.tables import read_table
from cspine_kit.ship.kaggle.parcels import Parcel
from cspine_kit.ship.training.dataset import write_dataset
from cspine_kit.ship.training.names import OUTPUT_GB, Kind, competition_elsewhere
from cspine_kit.ship.training.output import Report, leave
from cspine_kit.ship.training.work import work

NOTHING = Report(
    name="demo", kind="cache", number=1, dataset="", next="train", left="4 fold models",
    fault="", hours=0.1, volumes=0, files={},
)  # fmt: skip


def two_steps() -> Config:
    """A config without scans whose trainings take two steps."""
    config = tiny_config()
    twice = {name: n.model_copy(update={"epochs": 2}) for name, n in config.networks.items()}
    changes = {"vertebra": twice["vertebra"], "members": {"a": twice["a"]}}
    changes["competition"] = competition_elsewhere(config)
    return config.model_copy(update=changes)


def first_output(folder: Path, studies: int, *, dataset: str = "") -> Report:
    """What a cache session leaves: tables, folds and volumes of noise."""
    paths = write_run(folder / "oof" / "demo", studies)
    uids = read_table(paths.table("studies"), "studies")["study_uid"]
    groups = pd.DataFrame({"study_uid": uids, "group": uids, "reason": ""})
    with publish(paths.root / "index" / "groups.csv", "k2") as temporary:
        groups.to_csv(temporary, index=False)
    write_json(paths.root / "index" / "failures.json", {})
    return leave(paths, NOTHING.model_copy(update={"dataset": dataset}), folder)


@dataclass
class Place:
    """A folder for the sessions of one training."""

    root: Path
    config: Config
    outputs: list[Path] = field(default_factory=list)

    def cached(self, studies: int) -> Report:
        """The first session."""
        self.outputs.append(self.root / "output0")
        return first_output(self.outputs[0], studies)

    def dataset(self, hours: float, output_gb: float = OUTPUT_GB) -> Parcel:
        """The dataset whose sessions stop after so many hours, or with so much to leave."""
        folder = self.root / f"dataset_{hours}_{output_gb}"
        limits = {"hours": hours, "output_gb": output_gb}
        return write_dataset(self.config, folder, wheels=[], pretrained={}, **limits)

    def mount(self, source: Path, place: str) -> None:
        """Mount a folder once."""
        target = self.root / "input" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(source.absolute())

    def session(
        self, hours: float, *, kind: Kind = "train", output_gb: float = OUTPUT_GB, **mounts: Path
    ) -> Report:
        """The work of one more session, on all outputs so far."""
        parcel, number = self.dataset(hours, output_gb), len(self.outputs)
        for k, output in enumerate(self.outputs):
            self.mount(output, f"notebooks/me/session-{k}")
        for place, source in mounts.items():
            self.mount(source, place)
        out = self.root / f"output{number}"
        out.mkdir(parents=True)
        with contextlib.chdir(out):
            inputs = self.root.absolute() / "input"
            report = work(inputs, parcel.folder.absolute(), out.absolute(), kind=kind)
        assert report.dataset == file_hash(parcel.folder / "manifest.json") == parcel.digest
        self.outputs.append(out)
        return report
