"""Which level a slice shows, said by headers, networks and decode: one table, out-of-fold.

In: a finished vertebra stage. Out: `vertebra/presence.csv` (accuracy, precision, recall and F1 of
each level by each system), `vertebra/confusion.csv`, `vertebra/networks.csv` (levels by each
network), and where a network draws levels `vertebra/dice.csv`. Example::

    table = write_presence(config, paths)
    table.loc[table["level"] == "mean", ["system", "accuracy"]]
    report_presence(config, paths).splitlines()[1]

All systems are judged on the same slices: those of masked studies that the first network of the
stage looks at, each by models that have not learned from the study.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import Config
from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray, sigmoid
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import fingerprint, is_fresh, publish, stored_key
from cspine_kit.core.tables import MASK_COLUMNS, VERTEBRA_COLUMNS, read_table
from cspine_kit.data.levels import DECODE_VERSION, decode_visible
from cspine_kit.data.volumes.volume import nearest_slices
from cspine_kit.show.networks import networks_table
from cspine_kit.stack.fallback.headers import read_headers
from cspine_kit.stack.headers.presence import Presence, header_presence
from cspine_kit.vision.names import DICE, VERTEBRA
from cspine_kit.vision.nets.heads import asks_headers
from cspine_kit.vision.tasks.vertebra import combined

VERSION = 2
"""Raised when the same tables would give other figures."""

DECODED, MEAN, NONE = "after decode", "mean", "none"
SEEN = 0.5
"""Probability from which a level counts as seen on a slice."""

PUBLISHED = {
    "D, random forest": (0.8891, 0.8898, 0.8962, 0.8952, 0.8893, 0.8713, 0.8576),
    "D, EfficientNetV2": (0.9621, 0.9409, 0.9559, 0.9605, 0.9482, 0.9450, 0.9465),
}
"""Accuracy of C1..C7 that source document D published: other slices of the same competition."""


@dataclass(frozen=True)
class Judged:
    """Slices of one study: `truth` (n, 7) areas of the mask, `said` (n, 7) by system."""

    truth: FloatArray
    said: dict[str, FloatArray]


def write_presence(config: Config, paths: RunPaths) -> pd.DataFrame:
    """Write the tables unless they are there; returns the first, empty without a masked study.

    Raises:
        ArtifactError: the vertebra stage has not run yet.
    """
    folder = paths.root / VERTEBRA
    names = ("slices", "studies", VERTEBRA)
    stored = [stored_key(paths.table(name)) for name in (*names, "levels", DICE)]
    key = fingerprint(VERSION, DECODE_VERSION, stored, list(config.trained), config.seed)
    file = folder / "presence.csv"
    if is_fresh(file, key):
        return pd.read_csv(file)
    slices, studies, rows = (read_table(paths.table(name), name) for name in names)
    own = rows[rows["fold"] == rows["model_fold"]]
    judged = judge_presence(slices, studies, own, systems_of(config), seed=config.seed)
    tables = {"networks.csv": networks_table(config, paths), "confusion.csv": confusions(judged)}
    folder.mkdir(parents=True, exist_ok=True)
    if paths.table(DICE).exists():
        tables["dice.csv"] = dice_table(read_table(paths.table(DICE), DICE))
    else:
        (folder / "dice.csv").unlink(missing_ok=True)
    tables["presence.csv"] = presence_table(judged)
    for name, table in tables.items():
        with publish(folder / name, key) as temporary:
            table.to_csv(temporary, index=False)
    return pd.read_csv(file)


def systems_of(config: Config) -> dict[str, str]:
    """What each network of the vertebra stage that speaks is called in the tables."""
    kinds = {name: "segmentation" for name, m in config.stage.items() if m.kind == "segment"}
    kinds |= {name: "image + headers" for name, m in config.stage.items() if asks_headers(m)}
    return {name: f"{name}: {kinds.get(name, 'image')}" for name in config.stage}


def report_presence(config: Config, paths: RunPaths) -> str:
    """Write the tables, and say what they hold of accuracy, Dice and centers.

    Raises:
        ArtifactError: the vertebra stage has not run yet.
    """
    told = [describe_presence(write_presence(config, paths))]
    titles = {
        "dice.csv": "Dice of what a network draws, out-of-fold:",
        "networks.csv": "levels by each network of the vertebra stage, out-of-fold:",
    }
    for name, title in titles.items():
        file = paths.root / VERTEBRA / name
        if file.exists():
            table = pd.read_csv(file)
            told.append(f"{title}\n{table.to_string(index=False, float_format='{:.3f}'.format)}")
    return "\n".join(told)


def judge_presence(
    slices: pd.DataFrame,
    studies: pd.DataFrame,
    rows: pd.DataFrame,
    networks: Mapping[str, str],
    *,
    seed: int,
) -> list[Judged]:
    """What each system says of the masked studies of which every network has spoken.

    Args:
        slices, studies: tables of these names.
        rows: of table `vertebra`, by models that have not learned from the study.
        networks: of the vertebra stage, the first of which gives the slices, and their systems.
        seed: of the forest.
    """
    areas = dict(iter(slices.dropna(subset=list(MASK_COLUMNS)).groupby("study_uid")))
    spoken = rows[rows["member"].isin(list(networks)) & rows["study_uid"].isin(set(areas))]
    by_study = {
        str(uid): [own[own["member"] == name] for name in networks]
        for uid, own in spoken.groupby("study_uid", sort=True)
        if set(own["member"]) == set(networks)
    }
    masked = studies[studies["study_uid"].isin(set(by_study))]
    fold_of = {uid: int(parts[0]["fold"].iloc[0]) for uid, parts in by_study.items()}
    by_headers = header_presence(read_headers(slices, masked), fold_of, seed=seed)
    return [
        _judge(areas[uid], dict(zip(networks.values(), parts, strict=True)), uid, by_headers)
        for uid, parts in by_study.items()
    ]


def _judge(
    slices: pd.DataFrame, said: dict[str, pd.DataFrame], uid: str, by_headers: Presence
) -> Judged:
    ordered = [part.sort_values("at_mm", ascending=False) for part in said.values()]
    at_mm = ordered[0]["at_mm"].to_numpy(np.float64)
    native = slices.sort_values("z_mm", ascending=False)
    nearest = nearest_slices(native["z_mm"].to_numpy(np.float64), at_mm)
    found = {name: probs[uid][nearest] for name, probs in by_headers.items() if uid in probs}
    for name, part in zip(said, ordered, strict=True):
        # Rows of another network, on the slices of the first.
        alone = combined([part], on=ordered[0])[list(VERTEBRA_COLUMNS)]
        found[name] = sigmoid(alone.to_numpy(np.float64))
    together = combined(ordered)[list(VERTEBRA_COLUMNS)].to_numpy(np.float64)
    found[DECODED] = decode_visible(at_mm, together)
    return Judged(native[list(MASK_COLUMNS)].to_numpy(np.float64)[nearest], found)


def _systems(judged: Sequence[Judged]) -> list[str]:
    """Systems that spoke of every study, in order."""
    every = [set(own.said) for own in judged]
    return [name for name in judged[0].said if all(name in own for own in every)] if judged else []


def presence_table(judged: Sequence[Judged]) -> pd.DataFrame:
    """A row for each system and level, and one of its means: slices, accuracy, precision, recall,
    f1 (NaN where nothing is said or true)."""
    rows: list[dict[str, object]] = []
    truth = np.concatenate([own.truth for own in judged] or [np.zeros((0, len(LEVELS)))]) > 0
    for system in _systems(judged):
        said = np.concatenate([own.said[system] for own in judged]) > SEEN
        numbers = [_numbers(truth[:, k], said[:, k]) for k in range(len(LEVELS))]
        rows += [
            {"system": system, "level": level, "slices": len(truth), **own}
            for level, own in zip(LEVELS, numbers, strict=True)
        ]
        mean = {name: np.nanmean([own[name] for own in numbers]) for name in numbers[0]}
        rows.append({"system": system, "level": MEAN, "slices": len(truth), **mean})
    columns = ["system", "level", "slices", "accuracy", "precision", "recall", "f1"]
    return pd.DataFrame(rows, columns=columns)


def describe_presence(table: pd.DataFrame) -> str:
    """Accuracy of each level by each system, a line each; where nothing was masked, a remark."""
    if table.empty:
        return "no masked study: nobody knows how often levels are told rightly"
    wide = table.pivot(index="system", columns="level", values="accuracy")
    ordered = wide.loc[list(dict.fromkeys(table["system"])), [*LEVELS, MEAN]]
    ordered.index.name = ordered.columns.name = None
    title = "which level a slice shows, accuracy out-of-fold:"
    return f"{title}\n{ordered.to_string(float_format='{:.4f}'.format)}"


def _numbers(truth: BoolArray, said: BoolArray) -> dict[str, float]:
    hits, called, there = (int(v.sum()) for v in (truth & said, said, truth))
    return {
        "accuracy": float((truth == said).mean()),
        "precision": hits / called if called else float("nan"),
        "recall": hits / there if there else float("nan"),
        "f1": 2 * hits / (called + there) if called + there else float("nan"),
    }


def confusions(judged: Sequence[Judged]) -> pd.DataFrame:
    """How many slices whose largest level is one are said to show another most: system, truth,
    said, slices; `none` where there is no level."""
    names = [*LEVELS, NONE]
    rows: list[dict[str, object]] = []
    for system in _systems(judged):
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        for own in judged:
            np.add.at(counts, (_named(own.truth, 0.0), _named(own.said[system], SEEN)), 1)
        rows += [
            {"system": system, "truth": names[i], "said": names[j], "slices": int(n)}
            for (i, j), n in np.ndenumerate(counts)
        ]
    return pd.DataFrame(rows, columns=["system", "truth", "said", "slices"])


def _named(values: FloatArray, least: float) -> IntArray:
    """Index of the largest of (n, 7) values, 7 where none passes `least`."""
    named: IntArray = np.where(values.max(axis=1) > least, values.argmax(axis=1), len(LEVELS))
    return named


def dice_table(counts: pd.DataFrame) -> pd.DataFrame:
    """Dice of each level over all masked studies of the folds, and the mean over studies that show
    the level: network, level, studies, dice, mean_dice."""
    shown = counts[counts["true_px"] > 0]
    shown = shown.assign(dice=2 * shown["both_px"] / (shown["said_px"] + shown["true_px"]))
    masked = counts.groupby(["member", "study_uid"])["true_px"].transform("sum") > 0
    rows = []
    for (member, level), own in counts[masked].groupby(["member", "level"], sort=True):
        total = own[["both_px", "said_px", "true_px"]].sum()
        of_level = shown[(shown["member"] == member) & (shown["level"] == level)]
        both = total["said_px"] + total["true_px"]
        rows.append(
            {
                **{"network": member, "level": level, "studies": len(of_level)},
                "dice": 2 * total["both_px"] / both if both else float("nan"),
                "mean_dice": of_level["dice"].mean(),
            }
        )
    return pd.DataFrame(rows, columns=["network", "level", "studies", "dice", "mean_dice"])
