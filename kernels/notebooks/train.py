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
# # Train one fold model where the data lies
#
# Attach the competition and your dataset `cspine-kit-bundle` (it holds the kit's wheel and a resolved config). Switch the GPU on, and
# the internet once, so that pip can fetch what the image lacks. A training that is cut off goes on from its last checkpoint
# when its files are put back under `oof/`.

# %%
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import yaml

INPUT = Path(os.environ.get("CSPINE_INPUT", "/kaggle/input"))


def find(name):
    """The first such file, at the depths at which Kaggle mounts data sources."""
    for stars in ("*", "*/*", "*/*/*"):
        for path in sorted(INPUT.glob(f"{stars}/{name}")):
            return path
    raise FileNotFoundError(f"{name} is not below {INPUT}; is the data source attached?")


def run(*command):
    """Run a command; what it prints is shown as it comes."""
    subprocess.run([sys.executable, "-m", *command], check=True)


if importlib.util.find_spec("cspine_kit") is None:
    run("pip", "install", "--quiet", str(find("cspine_kit-*.whl")))

# %% [markdown]
# ## What is trained
#
# The config of the bundle, with the competition's place here. Change what you like: every key is explained in the kit's
# `configs/base.yaml`, and a key that does not exist is refused by name.

# %%
MEMBER, FOLD = "vertebra", 0  # then a member's name
config = yaml.safe_load(find("config.yaml").read_text())
config["competition"] |= {"dir": str(find("train.csv").parent), "phantom": None}
config["name"] = "kaggle"
Path("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
print("members:", ", ".join(config["members"]))

# %% [markdown]
# ## Data: index, folds, volumes
#
# Reads every scan once and keeps two small volumes of it. Interrupt it at any time: what is finished is skipped.

# %%
run("cspine_kit", "index", "--config", "config.yaml")
run("cspine_kit", "folds", "--config", "config.yaml")
run("cspine_kit", "cache", "--config", "config.yaml")

# %% [markdown]
# ## Training

# %%
run("cspine_kit", "train", "--config", "config.yaml", "--member", MEMBER, "--fold", str(FOLD))

# %% [markdown]
# ## How it went
#
# On the fold's own studies, which it did not learn from. The last average of the weights is kept whatever the curve says.

# %%
folder = Path("oof/kaggle/models") / MEMBER / f"fold_{FOLD}"
history = pd.read_csv(folder / "history.csv").set_index("epoch")
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
history.filter(regex="loss").plot(ax=left, marker=".", title="loss")
history.filter(regex="^auc|metric").plot(ax=right, marker=".", title="AUC, metric A")
plt.show()
print(*sorted(path.name for path in folder.iterdir()), sep="\n")
