"""Typed configuration over YAML: one complete base, differences elsewhere, no silent typo.

In: a YAML file, optionally naming one `base:` file beside it. Out: a frozen `Config`. Example::

    config = load_config(Path("configs/demo.yaml"))
    config.vertebra.epochs, list(config.members)

`model:` holds the defaults of every network; `vertebra:` and each entry of `members:` hold only
what differs from it.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cspine_kit.core.errors import ConfigError

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PhantomConfig(Section):
    """Size and difficulty of the synthetic competition that stands in for the real one."""

    studies: Count
    test_studies: Count
    size_px: Annotated[int, Field(ge=32, le=2048)]
    difficulty: Literal["easy", "real"] = "real"
    masked: Share = 0.5
    boxed: Share = 0.5
    variety: Share = 0.0
    seed: Annotated[int, Field(ge=0)] = 0


class CompetitionConfig(Section):
    """Which competition folder is read, what else is learned from, and whether the kit writes the
    competition itself."""

    dir: Path
    slug: str
    extra: tuple[Path, ...] = ()
    phantom: PhantomConfig | None = None


class FoldsConfig(Section):
    """Cross-validation: grouped, stratified; a CSV `file` wins over the generator."""

    n: Annotated[int, Field(ge=2)]
    file: Path | None = None


class CacheConfig(Section):
    """Compact volume of a study: in-plane resampling, field, window; z keeps the native slices."""

    spacing_mm: Positive
    field_mm: Positive
    hu_low: float
    hu_high: float

    @model_validator(mode="after")
    def _window(self) -> "CacheConfig":
        if self.hu_low >= self.hu_high:
            raise ValueError(f"hu_low {self.hu_low} must lie below hu_high {self.hu_high}")
        return self

    @property
    def side_px(self) -> int:
        """Rows and columns of a cached slice."""
        return round(self.field_mm / self.spacing_mm)


class AugmentConfig(Section):
    """Random changes of training stacks; each is drawn anew per sample."""

    flip_x: Share
    rotate_deg: Annotated[float, Field(ge=0.0)]
    shift_mm: Annotated[float, Field(ge=0.0)]
    scale: Annotated[float, Field(ge=0.0, lt=1.0)]
    brightness: Annotated[float, Field(ge=0.0)]
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)]
    noise: Annotated[float, Field(ge=0.0)]


class ModelConfig(Section):
    """One 2.5D network and its training."""

    backbone: str
    pretrained: bool
    in_chans: Count
    stack_step_mm: Positive
    slice_step_mm: Positive
    field_mm: Positive
    size_px: Count
    drop_rate: Annotated[float, Field(ge=0.0, lt=1.0)]
    epochs: Count
    batch_size: Count
    slices_per_study: Count
    fractured_share: Share
    lr: Positive
    weight_decay: Annotated[float, Field(ge=0.0)]
    warmup: Share
    positive_weight: Positive
    visible_loss: Annotated[float, Field(ge=0.0)]
    augment: AugmentConfig
    seed: int = 0

    @model_validator(mode="after")
    def _odd_channels(self) -> "ModelConfig":
        if self.in_chans % 2 == 0:
            raise ValueError(f"in_chans must be odd (a center and its neighbours): {self.in_chans}")
        return self


class ExternalConfig(Section):
    """Somebody else's scores: out-of-fold on the training studies, and where a kernel finds its
    own."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$")]
    oof: Path
    test: Path | None = None


class StackConfig(Section):
    """The stack over aggregated statistics, and whatever else is stacked beside them."""

    form: Literal["per_exam", "global"]
    folds: Annotated[int, Field(ge=2)]
    seeds: Count
    rounds: Count
    patience: Count
    learning_rate: Positive
    num_leaves: Annotated[int, Field(ge=2)]
    min_rows: Count
    feature_fraction: Annotated[float, Field(gt=0.0, le=1.0)]
    bagging_fraction: Annotated[float, Field(gt=0.0, le=1.0)]
    extra_trees: bool
    l2: Annotated[float, Field(ge=0.0)]
    clip: Annotated[float, Field(gt=0.0, lt=0.5)]
    prevalence: Annotated[float, Field(gt=0.0, lt=1.0)] | None
    keep: tuple[str, ...] = ()
    sensitivities: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = (0.9,)
    external: tuple[ExternalConfig, ...] = ()
    columns: Path | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> "StackConfig":
        names = [external.name for external in self.external]
        if len(set(names)) < len(names):
            raise ValueError(f"external: names must differ, got {names}")
        return self


class BundleConfig(Section):
    """Names under which the bundle and the kernel go to Kaggle, and the wheels that travel."""

    owner: str
    dataset: str
    kernel: str
    license: str
    wheels: tuple[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9A-Za-z.]*$")], ...
    ]
    pythons: Annotated[
        tuple[Annotated[str, Field(pattern=r"^3\.[0-9]+$")], ...], Field(min_length=1)
    ]
    glibc: Annotated[str, Field(pattern=r"^2\.[0-9]+$")]


class KernelConfig(Section):
    """How the offline kernel runs, and what it gives up first when time runs short."""

    hours: Positive
    reserve_minutes: Annotated[float, Field(ge=0.0)]
    batch_size: Count
    views: Annotated[int, Field(ge=1, le=2)]
    readers: Annotated[int, Field(ge=0)]
    degrade: tuple[Literal["views", "folds", "members", "stride"], ...]


class TrainingConfig(Section):
    """How networks are trained on this machine."""

    precision: Literal["no", "fp16", "bf16"]
    workers: Annotated[int, Field(ge=0)]


class ExecutionConfig(Section):
    """Processes at once, threads of a network on a CPU (base.yaml says what 0 means), and where
    maps over studies run."""

    backend: Literal["local", "ray"] = "local"
    jobs: Annotated[int, Field(ge=0)]
    threads: Annotated[int, Field(ge=0)]


class Config(Section):
    """A complete, resolved experiment."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    seed: int
    competition: CompetitionConfig
    exclude: dict[str, str]
    folds: FoldsConfig
    cache: CacheConfig
    model: ModelConfig
    vertebra: ModelConfig
    members: Annotated[dict[str, ModelConfig], Field(min_length=1)]
    training: TrainingConfig
    stack: StackConfig
    bundle: BundleConfig
    kernel: KernelConfig
    execution: ExecutionConfig

    @model_validator(mode="after")
    def _fields_fit(self) -> "Config":
        for name, model in {"vertebra": self.vertebra, **self.members}.items():
            if model.field_mm > self.cache.field_mm:
                raise ValueError(
                    f"{name}.field_mm {model.field_mm} is larger than cache.field_mm "
                    f"{self.cache.field_mm}"
                )
        external = {e.name for e in self.stack.external}
        both = sorted(external & {*self.members, "all", "raw"})
        if both:
            raise ValueError(f"stack.external: {both} are names of members or of the kit")
        unknown = sorted(set(self.stack.keep) - external - set(self.members))
        if unknown:
            raise ValueError(f"stack.keep: {unknown} are no members")
        return self


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Deep-merge two mappings; values of `changes` win. `members` is replaced, not merged."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(old, value) if both and key != "members" else value  # type: ignore[arg-type]
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        nearby = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"config {path} not found" + (f"; there are {nearby}" if nearby else ""))
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"config {path} must be a mapping of sections, got {type(raw).__name__}")
    return raw


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Valid keys at a location of the config, for the nearest-key hint."""
    model: Any = Config
    for part in location:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            break
        field = model.model_fields.get(str(part))
        if field is None:
            break
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        model = sections[0] if sections else None
    return list(model.model_fields) if model is not None else []


def _explain(path: Path, error: ValidationError) -> str:
    lines = []
    faults = error.errors()
    in_model = {fault["loc"][1:] for fault in faults if fault["loc"][:1] == ("model",)}
    for fault in faults:
        location = fault["loc"]
        inherited = {"vertebra": location[1:], "members": location[2:]}.get(
            str(location[:1] and location[0])
        )
        if inherited in in_model:
            continue
        key = ".".join(str(part) for part in location)
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(location[-1]), _known_keys(location[:-1]), 1, 0.4)
            hint = (
                f"; did you mean {'.'.join([*map(str, location[:-1]), near[0]])!r}?" if near else ""
            )
            lines.append(f"unknown key {key!r}{hint}")
        else:
            got = f" (got {fault['input']!r})" if fault["type"] != "missing" else ""
            lines.append(f"{key or 'config'}: {fault['msg']}{got}")
    return f"config {path}: " + "; ".join(lines)


def parse_config(raw: dict[str, Any], path: Path) -> Config:
    """Fill `vertebra` and `members` from `model` and validate; `path` only names the source."""
    model = raw.get("model")
    if isinstance(model, dict):
        members = raw.get("members")
        raw = {**raw, "vertebra": merge(model, raw.get("vertebra") or {})}
        if isinstance(members, dict):
            raw["members"] = {name: merge(model, m or {}) for name, m in members.items()}
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from error


def load_config(path: Path) -> Config:
    """Read a config and its base.

    Raises:
        ConfigError: absent file, unknown key (names the nearest valid one), value out of range,
            or a base that itself has a base.
    """
    raw = _read_yaml(path)
    if "base" in raw:
        base_path = path.parent / str(raw.pop("base"))
        base = _read_yaml(base_path)
        if "base" in base:
            raise ConfigError(f"config {base_path} is a base and may not name a base itself")
        raw = merge(base, raw)
    return parse_config(raw, path)


def resolved_yaml(config: Config) -> str:
    """The complete config as YAML; `load_config` reads it back to an equal `Config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
