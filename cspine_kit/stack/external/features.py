"""External members and raw columns as features beside the kit's own, with or without their files.

In: features (`aggregate`), scores and columns (`external.read`). Out: more feature columns per
(study, level, model_fold). Example::

    from cspine_kit.stack.scores.baselines import wide_predictions

    theirs = wide_predictions(predictions, "mean_of_members")
    holed = add_scores(features, ["theirs"], {"theirs": theirs.iloc[5:]})   # NaN for five studies
    joined = add_agreement(holed.dropna(), ["theirs"])

A score becomes its log-odds; what a file does not say is imputed (`fallback.scores`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, N_LEVELS, OVERALL, TARGETS
from cspine_kit.core.numbers import FloatArray, logit, sigmoid
from cspine_kit.stack.external.read import STUDY
from cspine_kit.stack.features.names import ALL, COLUMN, EXTERNAL, OVERALL_ODDS, OWN_ODDS, RAW


def add_scores(
    features: pd.DataFrame, names: Sequence[str], given: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """A feature frame with each external member's log-odds; NaN where its file says nothing.

    Args:
        features: rows of `aggregate`.
        names: the members.
        given: probabilities by study_uid, of the members whose file is there.
    """
    columns: dict[str, FloatArray] = {}
    level = pd.Index(LEVELS).get_indexer(pd.Index(features["level"].to_numpy(object)))
    for name in names:
        own = np.full((len(features), len(TARGETS)), np.nan)
        if name in given:
            probs = given[name].reindex(features["study_uid"])[list(TARGETS)]
            own = logit(probs.to_numpy(np.float64))
        columns[f"{name}__{OWN_ODDS}"] = own[np.arange(len(own)), level]
        columns[f"{name}__{OVERALL_ODDS}"] = own[:, N_LEVELS]
    return features.assign(**columns)


def add_agreement(features: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The same with what the external members agree on, of every target.

    Args:
        features: whole units, C1..C7 one below the other, without holes.
        names: the members.
    """
    if not names:
        return features

    def mean(ends: str) -> FloatArray:
        odds = features[[f"{name}__{ends}" for name in names]].to_numpy(np.float64)
        return odds.mean(axis=1).reshape(-1, N_LEVELS)

    own, overall = mean(OWN_ODDS), mean(OVERALL_ODDS)
    doubt = np.log1p(-sigmoid(own))
    said = {"own": own, "others": logit(-np.expm1(doubt.sum(axis=1, keepdims=True) - doubt))}
    by_target = dict(zip(LEVELS, own.T, strict=True)) | {OVERALL: overall[:, 0]}
    said |= {target: np.repeat(by_target[target][:, None], N_LEVELS, axis=1) for target in TARGETS}
    return features.assign(**{f"{ALL}__{EXTERNAL}__{n}": v.ravel() for n, v in said.items()})


def add_columns(
    features: pd.DataFrame, columns: pd.DataFrame | None, names: Sequence[str]
) -> pd.DataFrame:
    """A feature frame with raw columns; NaN where nothing is known.

    Args:
        features: rows of `aggregate`.
        columns: of `read_columns`, or None: nothing is known.
        names: columns wanted, as they were in training.
    """
    wanted = [f"{RAW}__{COLUMN}__{name}" for name in names]
    if columns is None:
        return features.assign(**dict.fromkeys(wanted, np.nan))
    key = [c for c in (STUDY[0], "level") if c in columns]
    present = columns.set_index(key).reindex(columns=list(names))
    at = pd.MultiIndex.from_frame(features[key]) if len(key) > 1 else features[key[0]]
    values = present.reindex(at).to_numpy(np.float64)
    return features.assign(**dict(zip(wanted, values.T, strict=True)))
