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
# # Cervical spine fractures: a look at the competition's tables
#
# Attach the competition, run all. Needs nothing else: no GPU, no internet, no other data source.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pydicom

INPUT = Path(os.environ.get("CSPINE_INPUT", "/kaggle/input"))
LEVELS = [f"C{k}" for k in range(1, 8)]


def find(name):
    """The folder that holds a file, at the depths at which Kaggle mounts data sources."""
    for stars in ("*", "*/*", "*/*/*"):
        for path in sorted(INPUT.glob(f"{stars}/{name}")):
            return path.parent
    raise FileNotFoundError(f"{name} is not below {INPUT}; is the competition attached?")


competition = find("train.csv")
train = pd.read_csv(competition / "train.csv").set_index("StudyInstanceUID")
print(f"{len(train)} studies, {train['patient_overall'].mean():.1%} with a fracture")

# %% [markdown]
# ## Fractures: how many patients, which levels, which together
#
# Nearly every second patient has one; C7 and C2 break most often. Neighbors break together, C1 and C2 above all: a network that
# sees the seven levels jointly has something to learn.

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
train[LEVELS].mean().plot.bar(ax=left, title="share of studies with this level fractured", rot=0)
train[LEVELS].sum(axis=1).value_counts().sort_index().plot.bar(
    ax=middle, title="fractured levels per study", rot=0
)
together = train[LEVELS].corr()
image = right.imshow(np.ma.masked_where(np.eye(7, dtype=bool), together), vmin=0)
right.set(title="correlation of levels", xticks=range(7), yticks=range(7))
right.set_xticklabels(LEVELS)
right.set_yticklabels(LEVELS)
figure.colorbar(image, ax=right)
plt.show()

# %% [markdown]
# ## Boxes: a few hundred studies have them, slice by slice
#
# They lie where the fracture is seen, and have gaps: an unboxed slice of a boxed study is no proof that nothing is broken there.

# %%
boxes = pd.read_csv(competition / "train_bounding_boxes.csv")
own = boxes.groupby("StudyInstanceUID")["slice_number"]
spans = pd.DataFrame({"boxed": own.nunique(), "from first to last": own.max() - own.min() + 1})
gaps = (spans["boxed"] < spans["from first to last"]).mean()
print(f"{len(boxes)} boxes in {len(spans)} studies; {gaps:.0%} of these have gaps")
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
boxes[["width", "height"]].plot.hist(ax=left, bins=40, alpha=0.6, title="size of boxes, pixels")
spans.plot.hist(ax=right, bins=40, alpha=0.6, title="slices per boxed study")
plt.show()

# %% [markdown]
# ## Scans: slices, spacing, direction
#
# Files are numbered, but the number says nothing about the direction: about every tenth study of the real competition runs
# upwards. The position in the header is what counts.

# %%
folders = sorted((competition / "train_images").iterdir())
chosen = folders[:: max(1, len(folders) // 60)]


def geometry(folder):
    """Number of slices, their distance and direction, size of a pixel; from two headers."""
    names = sorted(folder.glob("*.dcm"), key=lambda path: int(path.stem))
    first, last = (pydicom.dcmread(path, stop_before_pixels=True) for path in (names[0], names[-1]))
    gone = float(last.ImagePositionPatient[2]) - float(first.ImagePositionPatient[2])
    return {
        "slices": len(names),
        "distance, mm": abs(gone) / max(1, len(names) - 1),
        "pixel, mm": float(first.PixelSpacing[0]),
        "runs upwards": gone > 0,
    }


scans = pd.DataFrame([geometry(folder) for folder in chosen])
print(f"{len(scans)} scans looked at; {scans['runs upwards'].mean():.0%} run upwards")
scans[["slices", "distance, mm", "pixel, mm"]].hist(figsize=(14, 3), bins=20, layout=(1, 3))
plt.show()

# %% [markdown]
# ## One study from the side
#
# Slices in the order of their positions, in bone window. Seven vertebrae, and what lies above and below them.


# %%
def side_view(folder):
    """The middle sagittal plane in Hounsfield units, and the distance of slices over a pixel."""
    slices = [pydicom.dcmread(path) for path in folder.glob("*.dcm")]
    slices.sort(key=lambda ds: -float(ds.ImagePositionPatient[2]))
    planes = [
        ds.pixel_array[:, ds.Columns // 2] * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        for ds in slices
    ]
    ends = [float(ds.ImagePositionPatient[2]) for ds in (slices[0], slices[-1])]
    step = abs(ends[0] - ends[1]) / max(1, len(slices) - 1)
    return np.stack(planes), step / float(slices[0].PixelSpacing[0])


broken = [folder for folder in chosen if train["patient_overall"].get(folder.name, 0)]
figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
for axis, folder in zip(axes, broken, strict=False):
    plane, aspect = side_view(folder)
    axis.imshow(plane, cmap="gray", vmin=-200, vmax=1200, aspect=aspect)
    levels = [level for level in LEVELS if train.loc[folder.name, level]]
    axis.set(title=f"fractured: {', '.join(levels)}", xlabel="front to back", ylabel="slices")
plt.show()
