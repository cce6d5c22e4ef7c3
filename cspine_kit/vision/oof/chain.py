"""A fold's artifacts and their keys: the only file that knows what is made from what.

In: a config, a run folder, its opened inputs, a fold. Out: `FoldChain`: where vertebra model k, its
rows and levels, the members' models and rows lie, and whether they are up to date. Example::

    from cspine_kit.vision.inputs.tables import open_inputs

    chain = FoldChain(config, paths, open_inputs(paths), fold=0)
    member, *_ = config.members
    chain.is_done(member)                          # False where anything is to be made
    chain.fracture_rows(member).todo()             # of which studies

A model's key holds the digests of its training studies (volumes, masks, labels, levels), its part
of the config, the seed and the version of the code that trains; a study's rows hang on their
model's key, on what the network sees of that study, and on the version of the code that predicts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from cspine_kit.core.config import Config, ModelConfig
from cspine_kit.core.failures import LEVELS, ROWS
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import file_hash, fingerprint, is_fresh
from cspine_kit.data.levels import DECODE_VERSION
from cspine_kit.data.volumes.cache import Cache
from cspine_kit.vision.inputs.mixing import MIXING_VERSION, mixes
from cspine_kit.vision.inputs.tables import Inputs
from cspine_kit.vision.names import MODEL_FILE, SLICES, VERTEBRA, WEIGHTS_FILE
from cspine_kit.vision.oof.attempts import Attempts
from cspine_kit.vision.oof.lineage import LINEAGE_FILE
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.vertebra import combined

TRAIN_VERSION = 2
"""Raised when the same studies and config would give other weights: a changed loss, target, draw,
augmentation or network."""


@dataclass(frozen=True)
class FoldChain:
    """One fold's artifacts: vertebra model k -> levels k -> fracture models k and their rows."""

    config: Config
    paths: RunPaths
    inputs: Inputs
    fold: int

    # ---- keys ------------------------------------------------------------------------------------

    def _model_key(self, name: str, model: ModelConfig, studies: dict[str, list[str]]) -> str:
        made_by = (TRAIN_VERSION, self.config.seed, self.config.training.precision)
        # Weights to start from count by what they hold.
        start = file_hash(model.weights_file) if model.weights_file else ""
        model = model.model_copy(update={"weights": None})
        return fingerprint(made_by, name, self.fold, _settings(model), start, studies)

    @cached_property
    def masked(self) -> list[str]:
        """Training studies that have a mask: what vertebra model k learns from."""
        return self._masked(training=True)

    @cached_property
    def masked_here(self) -> list[str]:
        """Studies of fold k that have a mask."""
        return self._masked(training=False)

    @property
    def by_finder(self) -> bool:
        """True where the finder that ships is vertebra model k: the config starts from it, and no
        mask could teach it more."""
        return self.config.vertebra.weights == "finder" and not self.masked and not self.pseudo

    def _masked(self, *, training: bool) -> list[str]:
        masked = self.inputs.studies["has_mask"]
        return [uid for uid in self.inputs.studies_of(self.fold, training=training) if masked[uid]]

    @cached_property
    def unmasked(self) -> list[str]:
        """Training studies without any mask: what a round of pseudo-labels learns from besides."""
        return [uid for uid in self._without_mask if uid not in self.inputs.pseudo]

    @property
    def _without_mask(self) -> list[str]:
        masked = set(self.masked)
        training = self.inputs.studies_of(self.fold, training=True)
        return [uid for uid in training if uid not in masked]

    @cached_property
    def pseudo(self) -> list[str]:
        """Unmasked training studies of which another tool made a mask."""
        return [uid for uid in self._without_mask if uid in self.inputs.pseudo]

    @property
    def pseudo_weight(self) -> float:
        """What such masks count beside the competition's own."""
        pseudo = self.config.competition.pseudo_masks
        return pseudo.weight if pseudo else 0.0

    @cached_property
    def _stage_keys(self) -> dict[str, str]:
        """By network of the vertebra stage, those of earlier rounds first."""
        pixels, masks = self.inputs.pixels, self.inputs.masks
        truth = {uid: [pixels[uid], masks[uid]] for uid in self.masked}
        keys: dict[str, str] = {}
        for networks in self.config.stage_rounds:
            for name, model in networks.items():
                studies = dict(truth)
                if model.kind == "vertebra":
                    weight = str(self.pseudo_weight)
                    said_by_others = self.inputs.pseudo_masks
                    studies |= {
                        uid: [pixels[uid], said_by_others[uid], weight] for uid in self.pseudo
                    }
                if name in self.config.teachers:
                    said = fingerprint(DECODE_VERSION, keys[self.config.teachers[name]])
                    studies |= {uid: [pixels[uid], said] for uid in self.unmasked}
                keys[name] = self._model_key(name, model, studies)
        return keys

    def _stage_rows_key(self, name: str, uid: str) -> str:
        made_by = task_of(self.config.trained[name]).rows_version
        return fingerprint(made_by, self._stage_keys[name], self.inputs.pixels[uid])

    def _levels_key(self, uid: str) -> str:
        stage = [self._stage_rows_key(name, uid) for name in self.config.stage]
        return fingerprint(DECODE_VERSION, *stage)

    def half_of(self, uid: str) -> int:
        """The half of the training folds, 0 or 1, that a training study belongs to."""
        before = sum(k != self.fold for k in range(self.inputs.fold_of[uid]))
        return before % 2

    def learned_by(self, name: str) -> list[str]:
        """Training studies that a network of the fracture stage is given."""
        half = self.config.halves.get(name)
        training = self.inputs.studies_of(self.fold, training=True)
        return [uid for uid in training if half is None or self.half_of(uid) == half.side]

    def judged_by(self, name: str) -> list[str]:
        """Studies that it is to judge: those of fold k, or those of the other half."""
        half = self.config.halves.get(name)
        training = self.inputs.studies_of(self.fold, training=half is not None)
        return [uid for uid in training if half is None or self.half_of(uid) != half.side]

    @cached_property
    def _fracture_keys(self) -> dict[str, str]:
        """By network of the fracture stage. A study's levels key stands for its volume and for
        vertebra model k too."""
        masks, labels = self.inputs.masks, self.inputs.labels
        grid = Cache.fine(self.config, self.paths).recipe
        studies = {
            uid: [grid, self._levels_key(uid), masks[uid], labels[uid]]
            for uid in self.inputs.studies_of(self.fold, training=True)
        }
        boxes = self.inputs.boxes
        boxed = {uid: [*known, boxes[uid]] for uid, known in studies.items()}
        keys: dict[str, str] = {}
        for name, model in self.config.fracture.items():
            known = boxed if task_of(model).reads_boxes else studies
            teachers = {
                uid: keys[teacher]
                for teacher in self.config.halves_before(name)
                for uid in self.judged_by(teacher)
            }
            own = {
                uid: [*known[uid], *([teachers[uid]] if uid in teachers else [])]
                for uid in self.learned_by(name)
            }
            if model.head_studies != "all":
                own = {uid: [*each, f"half {self.half_of(uid)}"] for uid, each in own.items()}
            keys[name] = self._model_key(name, model, own)
        return keys

    def _fracture_rows_key(self, member: str, uid: str) -> str:
        version = task_of(self.config.fracture[member]).rows_version
        made_by = (version, self.config.kernel.views)
        return fingerprint(made_by, self._fracture_keys[member], self._levels_key(uid))

    def model_key(self, name: str) -> str:
        """What fold model k of a member, or of a network of the vertebra stage, is made from."""
        return (self._fracture_keys if name in self.config.fracture else self._stage_keys)[name]

    # ---- artifacts -------------------------------------------------------------------------------

    def stage_rows(self, name: str = VERTEBRA) -> Attempts:
        """Rows of model k of a network of the vertebra stage on every study."""

        def key(uid: str) -> str:
            return self._stage_rows_key(name, uid)

        file = self.paths.model(name, self.fold) / f"{SLICES}.parquet"
        uids, state = tuple(self.inputs.fold_of), self.inputs.file_state
        others = task_of(self.config.trained[name]).tables
        return Attempts(ROWS, name, self.fold, file, uids, key, state, others)

    def spoken(self) -> dict[str, pd.DataFrame]:
        """What the vertebra stage says of each study: of several networks, that which the decode
        takes from all (`combined`). Studies of which one of them says nothing are not there."""
        parts = [by_study(self.stage_rows(name).frame()) for name in self.config.stage]
        whole = [uid for uid in parts[0] if all(uid in part for part in parts)]
        return {uid: combined([part[uid] for part in parts]) for uid in whole}

    @property
    def levels(self) -> Attempts:
        """Levels of every study that has rows of the whole vertebra stage."""
        first, *others = (self.stage_rows(name).content() for name in self.config.stage)
        uids = tuple(uid for uid in first if all(uid in other for other in others))
        file = self.paths.model(VERTEBRA, self.fold) / "levels.parquet"
        return Attempts(LEVELS, VERTEBRA, self.fold, file, uids, self._levels_key)

    def fracture_rows(self, member: str) -> Attempts:
        """Rows of fracture model k on the studies that it is to judge."""
        leveled = self.levels.content()

        def key(uid: str) -> str:
            return self._fracture_rows_key(member, uid)

        def state(uid: str) -> str:
            return fingerprint(uid in leveled, self.inputs.file_state(uid))

        file = self.paths.model(member, self.fold) / f"{SLICES}.parquet"
        uids = tuple(self.judged_by(member))
        others = task_of(self.config.fracture[member]).tables
        return Attempts(ROWS, member, self.fold, file, uids, key, state, others)

    def has_model(self, name: str) -> bool:
        """True where fold model k is there and up to date."""
        folder, key = self.paths.model(name, self.fold), self.model_key(name)
        whole = is_fresh(folder / WEIGHTS_FILE, key) and is_fresh(folder / LINEAGE_FILE, key)
        return whole and (folder / MODEL_FILE).exists()

    def is_done(self, name: str) -> bool:
        """True where there is nothing to make of a member, or of the vertebra stage as a whole, nor
        to try again."""
        if name == VERTEBRA:
            networks = [n for part in self.config.stage_rounds for n in part]
            made = all(self.has_model(n) and not self.stage_rows(n).todo() for n in networks)
            return made and not self.levels.todo()
        return self.has_model(name) and not self.fracture_rows(name).todo()


def by_study(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each study."""
    return {str(uid): group for uid, group in frame.groupby("study_uid", sort=True)}


def _settings(model: ModelConfig) -> dict[str, Any]:
    """A network's section without what does nothing in it.

    A default in a section's class is what networks were before the key was known: they stay what
    they are. And a network of one round does not depend on how many follow.
    """
    optional = {
        name
        for name, field in type(model).model_fields.items()
        if not field.is_required() and getattr(model, name) == field.default
    }
    settings = model.model_dump(mode="json", exclude=(optional - {"kind", "seed"}) | {"rounds"})
    return {**settings, "mixing": MIXING_VERSION} if mixes(model) else settings
