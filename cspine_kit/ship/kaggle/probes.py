"""Two constant submissions that would settle which form of the metric the server uses.

In: train.csv, the test listing. Out: `probe_means.csv`, `probe_scaled.csv` and what each scores
under each form. Example::

    report = write_probes(competition.train_csv, competition.test_csv, Path("submissions/probes"))
    print(report.text)

`means` predicts each target's training mean m, `scaled` 2m / (1 + m). Scaled is the best constant
of form B and worse than the means under form A, whatever the hidden prevalence between 0.40 and
0.476: one late submission of each tells A from B, and the two scores together give the prevalence.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.metric import weights
from cspine_kit.core.numbers import log_losses
from cspine_kit.data.labels import read_labels
from cspine_kit.infer.submission import read_wanted_rows, write_submission

PREVALENCES = (0.40, 0.45)
"""Hidden shares of fractured studies tried beside the training set's own."""


@dataclass(frozen=True)
class Probes:
    """Expected scores: rows probe, prevalence, per_exam, global; and what to conclude, as text."""

    expected: pd.DataFrame
    text: str


def probe_constants(labels: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The two predictions (8,) from labels (n, 8)."""
    means = labels.mean(axis=0)
    return {"means": means, "scaled": 2.0 * means / (1.0 + means)}


def expected_scores(
    labels: NDArray[np.float64], constant: NDArray[np.float64], prevalence: float
) -> tuple[float, float]:
    """Form A and form B of a constant on studies like these, mixed to another prevalence."""
    fractured = labels[:, -1] > 0.5
    rate = fractured.mean()
    mix = np.where(fractured, prevalence / rate, (1.0 - prevalence) / (1.0 - rate))
    w = weights(labels)
    loss = (w * log_losses(labels, np.broadcast_to(constant, labels.shape))).sum(axis=1)
    total = w.sum(axis=1)
    per_exam = float(np.average(loss / total, weights=mix))
    return per_exam, float((mix * loss).sum() / (mix * total).sum())


def write_probes(labels_csv: Path, test_csv: Path, out: Path) -> Probes:
    """Write both submissions for the rows of test.csv, and say what their scores would mean.

    Raises:
        DataError: train.csv or test.csv is unreadable or has other columns.
    """
    labels = read_labels(labels_csv)[list(TARGETS)].to_numpy(np.float64)
    wanted = read_wanted_rows(test_csv)
    place = wanted["target"].map({t: i for i, t in enumerate(TARGETS)}).to_numpy(np.int64)
    rows = []
    for name, constant in probe_constants(labels).items():
        write_submission(wanted, pd.Series(constant[place]), out / f"probe_{name}.csv")
        for prevalence in (*PREVALENCES, float(labels[:, -1].mean())):
            rows.append((name, prevalence, *expected_scores(labels, constant, prevalence)))
    expected = pd.DataFrame(rows, columns=["probe", "prevalence", "per_exam", "global"])
    return Probes(expected, _explain(expected, out))


def _explain(expected: pd.DataFrame, out: Path) -> str:
    lines = [
        f"{'prevalence':>10s} {'means A':>9s} {'scaled A':>9s} {'means B':>9s} {'scaled B':>9s}"
    ]
    gaps: dict[str, list[float]] = {"per_exam": [], "global": []}
    for prevalence, part in expected.groupby("prevalence"):
        by = part.set_index("probe")
        line = f"{prevalence:10.3f}"
        for form, gap in gaps.items():
            means, scaled = (float(by.loc[p, form]) for p in ("means", "scaled"))
            gap.append(scaled - means)
            line += f" {means:9.4f} {scaled:9.4f}"
        lines.append(line)
    a, b = gaps["per_exam"], gaps["global"]
    lines += [
        f"scaled minus means: form A {min(a):+.4f} to {max(a):+.4f}, "
        f"form B {min(b):+.4f} to {max(b):+.4f}",
        f"Submit {out / 'probe_means.csv'} and {out / 'probe_scaled.csv'}: if scaled scores lower, "
        "the server uses form B (global), else form A (per exam).",
    ]
    return "\n".join(lines)
