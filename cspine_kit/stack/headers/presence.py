"""Which of C1..C7 a slice shows, from geometry alone, out-of-fold: what images have to beat.

In: `Headers` of masked studies and their folds. Out: probabilities of two models. Example::

    from cspine_kit.stack.fallback.headers import read_headers

    headers = read_headers(slices[slices["study_uid"] == uid], studies[studies["study_uid"] == uid])
    forest_features(headers[uid]).shape[1] == len(FEATURES)
    masked = studies[studies["has_mask"]]
    said = header_presence(read_headers(slices, masked), fold_of, seed=0)
    said[HEADERS][uid].shape[1], said[FOREST][uid].max() <= 1.0         # 7, True

The forest is the usual baseline (source documents B and D): a slice's position among the scan's,
its distances and its thickness. The header model is the kernel's own, that stands in where pixels
cannot be read.
"""

from collections.abc import Mapping

import numpy as np

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.numbers import FloatArray, sigmoid
from cspine_kit.stack.fallback.headers import HeaderFallback, Headers, fit_ends

FOREST, HEADERS = "forest", "headers"
FEATURES = ("from_top_mm", "from_bottom_mm", "ratio", "z_mm", "step_mm", "pixel_mm", "rows")
TREES, LEAF = 100, 10

Presence = dict[str, dict[str, FloatArray]]
"""(n, 7) probabilities of a study's slices from the head down, by model and study."""


def forest_features(headers: Headers) -> FloatArray:
    """(n, `FEATURES`) of a study's slices."""
    z_mm, (step, pixel, _) = headers.z_mm, headers.spacing_mm
    above, below = z_mm[0] - z_mm, z_mm - z_mm[-1]
    scan = np.broadcast_to([step, pixel, headers.shape[0]], (len(z_mm), 3))
    return np.column_stack([above, below, above / max(above[-1], 1.0), z_mm, scan])


def header_presence(
    headers: Mapping[str, Headers], fold_of: Mapping[str, int], *, seed: int
) -> Presence:
    """Both models on the masked studies of every fold, each learned from the other folds.

    Args:
        headers: studies; those without a mask are passed over.
        fold_of: fold by study_uid.
        seed: of the forests.
    """
    masked = {uid: own for uid, own in headers.items() if own.shown is not None and uid in fold_of}
    said: Presence = {FOREST: {}, HEADERS: {}}
    for fold in sorted({fold_of[uid] for uid in masked}):
        learned = [own for uid, own in masked.items() if fold_of[uid] != fold]
        held = {uid: own for uid, own in masked.items() if fold_of[uid] == fold}
        if learned:
            said[FOREST] |= _forest(learned, held, seed + fold)
            model = HeaderFallback(*fit_ends(learned))
            said[HEADERS] |= {uid: sigmoid(model.vertebra_logits(own)) for uid, own in held.items()}
    return said


def _forest(learned: list[Headers], held: dict[str, Headers], seed: int) -> dict[str, FloatArray]:
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(TREES, min_samples_leaf=LEAF, n_jobs=1, random_state=seed)
    features = np.concatenate([forest_features(own) for own in learned])
    shown = np.concatenate([np.asarray(own.shown) for own in learned]) > 0.5
    forest.fit(features, shown)
    # All studies at once: a call costs as much as thousands of slices.
    lengths = [len(own.z_mm) for own in held.values()]
    parts = forest.predict_proba(np.concatenate([forest_features(own) for own in held.values()]))
    # A level that no learned slice shows, or every one, has one class.
    yes = [
        part[:, list(classes).index(True)] if True in classes else np.zeros(len(part))
        for part, classes in zip(parts, forest.classes_, strict=True)
    ]
    rows = np.column_stack(yes).reshape(-1, N_LEVELS)
    return dict(zip(held, np.split(rows, np.cumsum(lengths)[:-1]), strict=True))
