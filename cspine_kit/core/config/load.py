"""A config from YAML: one complete base, differences elsewhere, no silent typo.

In: a YAML file, optionally naming one `base:` file beside it. Out: a frozen `Config`. Example::

    config = load_config(Path("configs/demo.yaml"))
    config.vertebra.epochs, list(config.members)

`model:` holds the defaults of every network; a section named like a kind, and each entry of
`vertebra_members:` and `members:` hold only what differs from it, and take of it only the keys that
their kind has. A member takes from its kind's section first.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cspine_kit.core.config.config import Config
from cspine_kit.core.config.members import MEMBERS
from cspine_kit.core.config.network import ModelConfig
from cspine_kit.core.config.networks import KINDS
from cspine_kit.core.config.stage import STAGE
from cspine_kit.core.errors import ConfigError

HOLDERS: dict[str, Mapping[str, type[ModelConfig]]] = {
    "members": MEMBERS,
    "vertebra_members": STAGE,
}
"""Sections that hold networks by name, and the kinds these may have."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where PyYAML was built with it, takes a tenth of the time."""


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Deep-merge two mappings; values of `changes` win. networks by name are replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(old, value) if both and key not in HOLDERS else value  # type: ignore[arg-type]
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """A file that holds a mapping.

    Raises:
        ConfigError: it is absent, no YAML, or holds something else.
    """
    if not path.exists():
        nearby = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"config {path} not found" + (f"; there are {nearby}" if nearby else ""))
    try:
        raw = yaml.load(path.read_text(), LOADER)
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"config {path} must be a mapping of sections, got {type(raw).__name__}")
    return raw


def _known_keys(location: tuple[int | str, ...], raw: dict[str, Any]) -> list[str]:
    """Valid keys at a location of the config, for the nearest-key hint."""
    model: Any = Config
    if len(location) > 1 and location[0] in HOLDERS:
        model, location = KINDS.get(_kind_of(location, raw)), location[2:]
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


def _kind_of(location: tuple[int | str, ...], raw: dict[str, Any]) -> str:
    """The kind of network at a location, "" elsewhere."""
    first = str(location[0])
    if first in HOLDERS:
        return str((raw.get(first, {}).get(location[1]) or {}).get("kind"))
    return first if first in KINDS else ""


def _plain(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A location as a config's author knows it: pydantic names a member's kind before its keys."""
    named = len(location) > 2 and location[0] in HOLDERS and location[2] in KINDS
    return (*location[:2], *location[3:]) if named else location


def _unknown_key(location: tuple[int | str, ...], raw: dict[str, Any]) -> str:
    """What is wrong with a key that its section does not have, and the nearest that it has."""
    *place, last = map(str, location)
    kind = _kind_of(location, raw)
    wrong = f"{'.'.join([*place, last])!r}"
    holders = [name for name, other in KINDS.items() if last in other.model_fields]
    alike = 0.4
    if kind and holders:
        said, alike = f"{wrong} does nothing for kind {kind!r}, only for {holders}", 0.6
    else:
        said = f"unknown key {wrong}"
    near = difflib.get_close_matches(last, _known_keys(location[:-1], raw), 1, alike)
    return said + (f"; did you mean {'.'.join([*place, near[0]])!r}?" if near else "")


def _unknown_kind(member: str, kind: str) -> str:
    kinds = HOLDERS[member.split(".", maxsplit=1)[0]]
    near = difflib.get_close_matches(kind, kinds, 1, 0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{member}.kind: {kind!r} is no kind of member, there are {list(kinds)}{hint}"


def _explain(path: Path, error: ValidationError, raw: dict[str, Any]) -> str:
    lines = []
    faults = error.errors()
    in_model = {fault["loc"][1:] for fault in faults if fault["loc"][:1] == ("model",)}
    for fault in faults:
        location = _plain(fault["loc"])
        first = str(location[:1] and location[0])
        inherited = location[2:] if first in HOLDERS else location[1:] if first in KINDS else None
        if inherited in in_model:
            continue
        key = ".".join(str(part) for part in location)
        if fault["type"] == "extra_forbidden":
            lines.append(_unknown_key(location, raw))
        elif first in HOLDERS and location[-1] == "[key]":
            lines.append(
                f"{first}: {location[1]!r} is no name: lower-case letters, digits and single "
                "underscores between them"
            )
        elif fault["type"] == "union_tag_invalid":
            lines.append(_unknown_kind(key, fault["ctx"]["tag"]))
        else:
            shown = fault["type"] != "missing" and not isinstance(fault["input"], dict)
            got = f" (got {fault['input']!r})" if shown else ""
            lines.append(f"{key or 'config'}: {fault['msg']}{got}")
    return f"config {path}: " + "; ".join(lines)


def _filled(model: dict[str, Any], changes: dict[str, Any], kind: str) -> dict[str, Any]:
    """A network's section over those defaults that its kind has."""
    fields = KINDS[kind].model_fields if kind in KINDS else model
    return merge({key: value for key, value in model.items() if key in fields}, changes)


def _networks(raw: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """`raw` with the kinds' sections and the networks by name filled from `model`."""
    shared = {key: value for key, value in model.items() if key != "kind"}
    filled = dict(raw)
    for kind in KINDS:
        if kind in Config.model_fields and isinstance(raw.get(kind) or {}, dict):
            filled[kind] = _filled(shared, raw.get(kind) or {}, kind)
    for holder, kinds in HOLDERS.items():
        if isinstance(raw.get(holder), dict):
            usual = next(iter(kinds))
            filled[holder] = {
                name: _member(shared, filled, {"kind": usual, **(member or {})})
                for name, member in raw[holder].items()
            }
    return filled


def _member(
    shared: dict[str, Any], filled: dict[str, Any], changes: dict[str, Any]
) -> dict[str, Any]:
    """A member's section over its kind's."""
    kind = str(changes["kind"])
    return _filled(filled.get(kind) or shared, changes, kind)


def parse_config(raw: dict[str, Any], path: Path) -> Config:
    """Fill all networks from `model` and validate; `path` only names the source."""
    if isinstance(raw.get("model"), dict):
        raw = _networks(raw, raw["model"])
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(path, error, raw)) from error


def read_config(path: Path) -> dict[str, Any]:
    """A config over its base, before networks take their defaults: what `parse_config` takes.

    Raises:
        ConfigError: absent file, no YAML, or a base that itself has a base.
    """
    raw = read_yaml(path)
    if "base" in raw:
        base_path = path.parent / str(raw.pop("base"))
        base = read_yaml(base_path)
        if "base" in base:
            raise ConfigError(f"config {base_path} is a base and may not name a base itself")
        raw = merge(base, raw)
    return raw


def load_config(path: Path) -> Config:
    """Read a config and its base.

    Raises:
        ConfigError: absent file, unknown key (names the nearest valid one), value out of range,
            or a base that itself has a base.
    """
    return parse_config(read_config(path), path)


def resolved_yaml(config: Config) -> str:
    """The complete config as YAML; `load_config` reads it back to an equal `Config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
