"""The list of labels that a human should look at."""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.stack.scores.disagreements import disagreements, render


def test_the_strongest_contradiction_comes_first_and_agreement_not_at_all():
    uids = [f"1.{k}" for k in range(4)]
    truth = np.zeros((4, 8))
    truth[1, [2, 7]] = 1.0
    probs = np.where(truth > 0.5, 0.9, 0.1)
    probs[0, 3], probs[1, 2], probs[3, 7] = 0.8, 0.01, 0.51
    labels = pd.DataFrame(truth, columns=TARGETS).assign(study_uid=uids)
    wide = pd.DataFrame(probs, columns=TARGETS, index=uids).rename_axis("study_uid").reset_index()
    long = wide.melt("study_uid", var_name="target", value_name="prob").assign(model="m", fold=2)
    other = long.assign(model="other", prob=0.5)
    table = disagreements(pd.concat([other, long]), labels[::-1], "m")
    found = list(table[["study_uid", "target", "label"]].itertuples(index=False, name=None))
    assert found == [("1.1", "C3", 1), ("1.0", "C4", 0), ("1.3", "patient_overall", 0)]
    assert table["loss"].is_monotonic_decreasing and (table["fold"] == 2).all()
    assert "3 of 3" in render(table) and "labelled 1, said 0.010" in render(table)
    assert disagreements(long.assign(prob=0.5), labels, "m").empty
