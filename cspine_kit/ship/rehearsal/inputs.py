"""What a rehearsal runs on: hostile, sound and absent studies as one competition, and its mounts.

In: phantom competitions. Out: a competition folder and where Kaggle would mount it. Example::

    inputs = Inputs(hostile=competition, clean=competition, full=competition)
    everything = assemble(inputs, Path("everything"))
    from cspine_kit.ship.kaggle.parcels import write_parcels

    parcels = write_parcels(config, bundle, Path("upload"))
    layouts(config, everything.root, parcels)["old"]      # place below /kaggle/input -> folder
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cspine_kit.core.config import Config
from cspine_kit.core.paths import Competition
from cspine_kit.core.runs import fingerprint, listing_fingerprint
from cspine_kit.data.labels import read_labels
from cspine_kit.ship.kaggle.parcels import Parcel

PUBLIC_ROWS = tuple(f"1.2.826.0.1.3680043.{number}_C1" for number in (10197, 10454, 10690))
"""The public test.csv: three rows whose studies are not among the public images."""


@dataclass(frozen=True)
class Inputs:
    """What a rehearsal runs on."""

    hostile: Competition
    """One test study per defect; its `manifest.csv` says what must come of each."""
    clean: Competition
    """Sound studies of the kind the models were trained on; they are scored."""
    full: Competition
    """Sound studies of real size; the forecast is made from them."""
    clean_limit: int = 8

    @property
    def clean_uids(self) -> list[str]:
        """The scored studies: the first of the clean test set that have images."""
        truth = read_labels(self.clean.solution_csv)["study_uid"]
        held = [str(uid) for uid in truth if self.clean.images("test", uid).is_dir()]
        return held[: self.clean_limit]

    @property
    def full_uids(self) -> list[str]:
        """The studies of real size."""
        return [str(uid) for uid in read_labels(self.full.solution_csv)["study_uid"]]


def assemble(inputs: Inputs, out: Path) -> Competition:
    """One competition of hostile, clean and full-size studies and the rows without images.

    Files are hard links where the disk allows it.
    """
    shutil.rmtree(out, ignore_errors=True)
    (out / "test_images").mkdir(parents=True)
    sources = [*sorted((inputs.hostile.root / "test_images").iterdir())]
    # Both may be one competition: nothing is listed twice but what the hostile listing repeats.
    full = [uid for uid in inputs.full_uids if uid not in inputs.clean_uids]
    plain = ((inputs.clean, inputs.clean_uids), (inputs.full, full))
    listing = [pd.read_csv(inputs.hostile.test_csv, dtype=str)]
    for competition, uids in plain:
        sources += [competition.images("test", uid) for uid in uids]
        rows = pd.read_csv(competition.test_csv, dtype=str)
        listing.append(rows[rows["StudyInstanceUID"].isin(uids)])
    for source in sources:
        if not (out / "test_images" / source.name).exists():
            shutil.copytree(source, out / "test_images" / source.name, copy_function=_link)
    listing.append(_public_listing())
    _write_listing(pd.concat(listing, ignore_index=True), out)
    return Competition(out)


def public_competition(inputs: Inputs, out: Path) -> Competition:
    """The public files: three rows, and the folders of other studies."""
    shutil.rmtree(out, ignore_errors=True)
    for uid in inputs.clean_uids[:3]:
        source = inputs.clean.images("test", uid)
        shutil.copytree(source, out / "test_images" / uid, copy_function=_link)
    _write_listing(_public_listing(), out)
    return Competition(out)


def _public_listing() -> pd.DataFrame:
    rows = [(row, *row.split("_", 1)) for row in PUBLIC_ROWS]
    return pd.DataFrame(rows, columns=["row_id", "StudyInstanceUID", "prediction_type"])


def _write_listing(listing: pd.DataFrame, out: Path) -> None:
    listing.to_csv(out / "test.csv", index=False)
    sample = listing[["row_id"]].drop_duplicates().assign(fractured=0.5)
    sample.to_csv(out / "sample_submission.csv", index=False)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def layouts(
    config: Config, competition: Path, parcels: Sequence[Parcel]
) -> dict[str, dict[str, Path]]:
    """Both layouts under which Kaggle mounts the sources, by place below /kaggle/input."""
    slug = config.competition.slug
    return {
        "new": {
            f"competitions/{slug}": competition,
            **{f"datasets/{parcel.ref}": parcel.folder for parcel in parcels},
        },
        "old": {
            slug: competition,
            **{parcel.ref.partition("/")[2]: parcel.folder for parcel in parcels},
        },
    }


def content_fingerprint(competition: Competition, bundle: Path) -> str:
    """Fingerprint of names, sizes and times of everything that is mounted."""
    folders = sorted((competition.root / "test_images").iterdir())
    return fingerprint(*map(listing_fingerprint, [competition.root, bundle, *folders]))
