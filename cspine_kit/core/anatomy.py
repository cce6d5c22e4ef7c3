"""The seven levels, the eight targets, the planes, the metric's weights, the competition's size.

In: nothing. Out: constants that every room uses, so that an order or a weight is written once.
Example::

    >>> LEVELS.index("C4"), TARGETS[-1]
    (3, 'patient_overall')
"""

LEVELS: tuple[str, ...] = ("C1", "C2", "C3", "C4", "C5", "C6", "C7")
"""Cervical vertebrae from head to chest. Array axes over levels follow this order."""

N_LEVELS = len(LEVELS)

OVERALL = "patient_overall"
"""1 where any level is fractured; equals max(C1..C7) in all 2,019 rows of train.csv."""

TARGETS: tuple[str, ...] = (*LEVELS, OVERALL)
"""The eight predicted targets. Array axes over targets follow this order."""

AXIAL = "axial"
PLANES: tuple[str, ...] = (AXIAL, "sagittal", "coronal")
"""Planes that a slice may lie in."""

LEVEL_WEIGHT = 1.0
OVERALL_WEIGHT = 7.0
POSITIVE_FACTOR = 2.0
"""Metric weights: a negative level counts 1, a negative overall 7, positives twice as much
(competition discussion 340392; the Evaluation page gives no numbers)."""

SPINE_LABEL_COUNT = 7
"""Mask labels 1..7 are C1..C7; 8..19 are T1..T12; 0 is background (competition data page)."""

REAL_STUDIES, REAL_SLICES, REAL_MASKED = 2019, 711_601, 87
"""The real training set: train.csv, the header table, and the published segmentations."""
