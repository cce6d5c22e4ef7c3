# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Judge scans, and look at the worst answers
#
# Attach the competition and your two datasets, `cspine-kit-bundle` and `cspine-kit-weights`. No internet is needed.
#
# The studies judged here are training studies: most of the bundle's networks have learned from them, so their scores are far too
# good. What the gallery shows is *what kind* of study still goes wrong. The honest score is the out-of-fold one, below.

# %%
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

INPUT = Path(os.environ.get("CSPINE_INPUT", "/kaggle/input"))
STUDIES, WORST = int(os.environ.get("CSPINE_STUDIES", "40")), 3


def find(name):
    """All such files, at the depths at which Kaggle mounts data sources."""
    found = [p for stars in ("*", "*/*", "*/*/*") for p in sorted(INPUT.glob(f"{stars}/{name}"))]
    if not found:
        raise FileNotFoundError(f"{name} is not below {INPUT}; is the data source attached?")
    return found


if importlib.util.find_spec("cspine_kit") is None:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = [str(w) for w in find("*.whl") if f"-{tag}-" in w.name or "-py3-" in w.name]
    offline = ["install", "--quiet", "--no-index", "--no-deps", *wheels]
    subprocess.run([sys.executable, "-m", "pip", *offline], check=True)

from cspine_kit import Predictor
from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.metric import metric, weights
from cspine_kit.core.numbers import log_losses

# %%
bundles = [path.parent for path in find("priors.json")]
print("bundles attached:", *bundles)
bundle = bundles[0]
score = json.loads((bundle / "manifest.json").read_text())["score"]
print(f"out-of-fold: A {score['per_exam']:.4f}, B {score['global']:.4f}")
competition = find("train.csv")[0].parent
train = pd.read_csv(competition / "train.csv").set_index("StudyInstanceUID")
predictor = Predictor(bundle)
judged, probs = {}, {}
for folder in sorted((competition / "train_images").iterdir())[:STUDIES]:
    found = predictor.predict(folder)
    if found.status != "ok":
        print(folder.name, found.status, found.reason)
        continue
    judged[folder.name] = found
    probs[folder.name] = found.probabilities.set_index("target")["prob"].loc[list(TARGETS)]

# %% [markdown]
# ## Where the loss comes from

# %%
y = train.loc[list(probs), list(TARGETS)].to_numpy(float)
p = np.array(list(probs.values()))
print(f"{len(p)} studies that were learned from: A {metric(y, p):.4f}")
loss = pd.DataFrame(weights(y) * log_losses(y, p), index=list(probs), columns=list(TARGETS))
loss.mean().plot.bar(title="weighted log loss per target", rot=0, figsize=(8, 3))
plt.show()

# %% [markdown]
# ## The worst studies
#
# Curves along the neck: what the members see of each level (grey) and where they see a fracture of it (red).

# %%
for uid in loss.sum(axis=1).nlargest(WORST).index:
    wrong = loss.loc[uid].drop("patient_overall").idxmax()
    rows = judged[uid].slices.groupby("z_mm")[[f"visible_{wrong}", f"fracture_{wrong}"]].mean()
    figure, axis = plt.subplots(figsize=(8, 2.5), layout="constrained")
    axis.plot(rows.index, rows[f"visible_{wrong}"], color="grey", label=f"shows {wrong}")
    axis.plot(rows.index, rows[f"fracture_{wrong}"], color="red", label=f"{wrong} fractured")
    axis.set(
        title=f"{uid}: {wrong} said {probs[uid][wrong]:.2f}, is {train.loc[uid, wrong]}",
        xlabel="mm along the neck",
        ylabel="probability",
        ylim=(0, 1),
    )
    axis.legend()
    plt.show()
