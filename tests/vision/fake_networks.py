"""Networks that learn nothing and answer at once, and a list of what was asked of them.

In: pytest's monkeypatch. Out: what was made, in order: ("train", name, fold) and ("rows", name,
fold, study_uid). Example::

    made = fake_networks(monkeypatch)
    run_oof(tiny_config(), paths)
    made.count("train")
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from cspine_kit.core.runs import publish, write_json
from cspine_kit.core.tables import FRACTURE_COLUMNS, SPINE_BOX_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.vision.names import MODEL_FILE, WEIGHTS_FILE
from cspine_kit.vision.oof import steps
from cspine_kit.vision.predict import Said


class Made(list):
    """What was made since the last `forget`."""

    def count_of(self, kind: str, *names: str) -> int:
        """Entries of a kind whose name is among `names`."""
        return sum(entry[0] == kind and entry[1] in names for entry in self)


class FakeModel:
    """Where it lies is all it knows."""

    def __init__(self, folder):
        self.name, self.fold = folder.parent.name, int(folder.name.removeprefix("fold_"))
        kind = "vertebra" if self.name.startswith("vertebra") else "slices"
        self.config = SimpleNamespace(kind=kind, one_output=False, target="presence")

    def to(self, device):
        return self


def fake_networks(monkeypatch) -> Made:
    """Put fakes in the place of training, loading and predicting."""
    made = Made()

    def train(dataset, config, folder, *, key, **rest):
        made.append(("train", folder.parent.name, int(folder.name.removeprefix("fold_"))))
        write_json(folder / MODEL_FILE, {"config": config})
        with publish(folder / WEIGHTS_FILE, key) as temporary:
            temporary.write_bytes(b"weights")

    def vertebra(volume):
        n = len(volume.z_mm)
        rows = pd.DataFrame({"position": np.arange(n), "at_mm": volume.z_mm})
        shown = np.arange(n)[:, None] // 3 == np.arange(7)
        rows[list(VERTEBRA_COLUMNS)] = np.where(shown, 4.0, -4.0)
        return rows.assign(**dict.fromkeys(SPINE_BOX_COLUMNS, 60.0))

    def fracture(volume):
        rows = pd.DataFrame({"position": [0, 1], "slice_idx": [0, 1], "at_mm": volume.z_mm[:2]})
        columns = (*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS)
        return rows.assign(plane="axial", **dict.fromkeys(columns, 0.5))

    def predict(models, volume, levels, batch, *, views):
        ((name, model),) = models.items()
        made.append(("rows", name, model.fold, volume.study_uid))
        rows = vertebra(volume) if levels is None else fracture(volume)
        return {name: Said(rows, None, 0.0)}

    monkeypatch.setattr(steps, "train_model", train)
    monkeypatch.setattr(steps, "load_model", FakeModel)
    monkeypatch.setattr(steps, "predict", predict)
    return made
