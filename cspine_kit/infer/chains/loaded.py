"""What a bundle holds, loaded on one device: networks of every fold, stack, headers, stand-ins.

In: a bundle laid out by `open_bundle` or `lay_out`. Out: models, and the chains that they make.
Example::

    from cspine_kit.infer.manifest import open_bundle

    loaded = Loaded(open_bundle(bundle, Path("opened")), tolerant=True)
    loaded.chains, loaded.faults          # folds that can run, the best first; what is not there

`Ensemble` lets them speak of a study.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from cspine_kit.core.config import Config, load_config
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import read_json
from cspine_kit.data.confidence import PLAIN, Calibration, mean_of
from cspine_kit.infer.answer import cause_of
from cspine_kit.infer.chains.governor import Effort, ladder
from cspine_kit.infer.chains.noise import CHECK_SLICES, levels_everywhere, noise_volumes
from cspine_kit.infer.manifest import CHAINS
from cspine_kit.stack.external.extras import Extras
from cspine_kit.stack.fallback.headers import HeaderFallback
from cspine_kit.stack.fallback.imputer import FILE as IMPUTER
from cspine_kit.stack.fallback.imputer import Imputer
from cspine_kit.stack.model.stack import Stack
from cspine_kit.stack.scores.baselines import MEAN_OF_MEMBERS
from cspine_kit.vision.finder.finder import LevelFinder
from cspine_kit.vision.names import MODEL_FILE, VERTEBRA, WEIGHTS_FILE
from cspine_kit.vision.nets.heads import Network
from cspine_kit.vision.nets.store import load_model
from cspine_kit.vision.predict import predict, set_device_threads
from cspine_kit.vision.tasks.kinds import task_of

T = TypeVar("T")


def chains_at(root: Path, config: Config) -> list[int]:
    """Folds whose files allow a chain: a vertebra model where any fold has one, and a member."""

    def held(name: str) -> set[int]:
        folder = root / "models" / name
        files = (MODEL_FILE, WEIGHTS_FILE)
        return {
            k
            for k in range(config.folds.n)
            if all((folder / f"fold_{k}" / file).exists() for file in files)
        }

    members, vertebra = (
        set[int]().union(*map(held, names)) for names in (config.members, config.stage)
    )
    return sorted(members & vertebra if vertebra else members)


def _load_on(device: str, folder: Path) -> Network:
    return load_model(folder).to(device)


class Loaded:
    """The models of a bundle on one device.

    `faults` names what could not be loaded ("vertebra fold 0", "stack stack", ...) and why.
    """

    def __init__(self, root: Path, device: str | None = None, *, tolerant: bool = False) -> None:
        """Load every model below `root`, a tree laid out by `open_bundle`.

        Args:
            root: the tree.
            device: where the networks run; the first there is by default.
            tolerant: what cannot be loaded is noted in `faults` instead of raised.

        Raises:
            ArtifactError: without `tolerant`, anything; with it, no chain is left.
        """
        self.faults: dict[str, str] = {}
        self._tolerant = tolerant
        noted = self.faults if tolerant else None
        self.stack = self._load("stack", lambda: Stack.load(root / "stack" / "models", noted))
        self.config: Config = load_config(root / "config.yaml")
        place = device or set_device_threads(self.config)
        self.models: dict[tuple[str, int], Network] = {}
        self.calibrations: dict[int, Calibration] = {}
        for name in (*self.config.stage, *self.config.members):
            for k in range(self.config.folds.n):
                folder = root / "models" / name / f"fold_{k}"
                model = self._load(f"{name} fold {k}", partial(_load_on, place, folder))
                if model is not None:
                    self.models[name, k] = model
        for k in sorted({k for name, k in self.models if name in self.config.stage}):
            folder = root / "models" / VERTEBRA / f"fold_{k}"
            line = self._load(f"calibration {k}", partial(Calibration.load, folder))
            self.calibrations[k] = line or PLAIN
        self.headers = self._load(
            "headers", lambda: HeaderFallback.load(root / "stack" / "header", noted)
        )
        imputer = self._load(
            "imputer", lambda: Imputer.from_json(read_json(root / "stack" / IMPUTER))
        )
        self.imputer = imputer or Imputer({})
        self.extras = self._load("external members", lambda: Extras.load(root / "stack"))
        losses = self._load("order of chains", lambda: read_json(root / CHAINS)) or {}
        self._losses = {int(k): float(loss) for k, loss in losses.items()}
        if not self.chains:
            raise ArtifactError(f"no chain of {root} can be loaded: {self.faults}")

    def _load(self, what: str, load: Callable[[], T]) -> T | None:
        try:
            return load()
        except Exception as error:
            if not self._tolerant:
                raise
            self.faults[what] = cause_of(error)
            return None

    def stage(self, folds: Sequence[int]) -> dict[tuple[str, int], Network]:
        """The networks of the vertebra stage that there are of these folds."""
        return {
            (name, k): self.models[name, k]
            for k in folds
            for name in self.config.stage
            if (name, k) in self.models
        }

    def _synthetic(self, folds: Sequence[int]) -> bool:
        networks = self.stage(folds).values()
        return any(network.synthetic for network in networks)

    @property
    def by_finder(self) -> bool:
        """True where the finder that ships tells levels, in some fold at least."""
        return self._synthetic(range(self.config.folds.n))

    @property
    def finder(self) -> LevelFinder:
        """The vertebra models speaking together, their logits averaged and decoded once."""
        models = list(self.stage(range(self.config.folds.n)).values())
        line = mean_of(list(self.calibrations.values()))
        return LevelFinder(models, line, self.config.volumes, self.config.kernel.batch_size)

    @property
    def chains(self) -> list[int]:
        """Folds that can run, best out-of-fold loss first.

        A chain needs its vertebra model, unless no fold has one, and a member.
        """
        folds = range(self.config.folds.n)
        vertebra = {k for _, k in self.stage(folds)} or set(folds)
        members = {k for name, k in self.models if name in self.config.members}
        usable = vertebra & members
        return sorted(usable, key=lambda k: (self._losses.get(k, float("inf")), k))

    @property
    def ships(self) -> str:
        """The model whose rows are submitted: the stack's, or the members' mean without it."""
        return self.stack.ships if self.stack else MEAN_OF_MEMBERS

    @property
    def efforts(self) -> list[Effort]:
        """From full to least, as the config degrades."""
        return ladder(self.config, self.imputer.order, len(self.chains))

    def check(self, *, drop: bool = False) -> dict[str, str]:
        """Run every network once on noise.

        Args:
            drop: networks that fail do not run again; others speak for them.

        Returns:
            Why networks fail, by stage; empty where all give finite numbers.

        Raises:
            ArtifactError: none works: the device is at fault, or no chain is left.
        """
        noise = noise_volumes(self.config.volumes)
        failed: dict[str, str] = {}
        for (name, k), model in self.models.items():
            volume = getattr(noise, task_of(model.config).grid)
            said = predict({k: model}, volume, levels_everywhere(volume), CHECK_SLICES)[k]
            if said.error is not None:
                failed[f"{name} fold {k}"] = cause_of(said.error)
        if len(failed) == len(self.models):
            raise ArtifactError(f"no network runs here: {next(iter(failed.values()))}")
        if drop:
            self.models = {
                (n, k): m for (n, k), m in self.models.items() if f"{n} fold {k}" not in failed
            }
            self.faults |= failed
            if not self.chains:
                raise ArtifactError(f"no chain is left: {failed}")
        return failed
