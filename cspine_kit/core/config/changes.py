"""One change of a config: values by dotted keys, checked as if they stood in the file.

In: a config as `read_config` gives it, changes. Out: another one. Example::

    from cspine_kit.core.config import parse_config, read_config

    raw = read_config(Path("configs/demo.yaml"))
    bigger = apply_changes(raw, {"model.size_px": 96, "members.*.augment.flip_x": 0.0})
    parse_config(bigger, Path("bigger.yaml")).model.size_px          # 96

`members.*` stands for every member whose kind has the key.
"""

import copy
import difflib
from collections.abc import Mapping
from typing import Any

from cspine_kit.core.config.networks import KINDS, MEMBERS
from cspine_kit.core.errors import ConfigError

MEMBERS_KEY, EVERY = "members", "*"


def apply_changes(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config with other values.

    Args:
        raw: of `read_config`; not changed.
        changes: values by dotted keys, `members.<name>.<key>` among them. A whole member, or a
            section, may be a value too.

    Raises:
        ConfigError: a member that is not there (names the nearest one), or a key that no member's
            kind has. Other unknown keys are `parse_config`'s to refuse.
    """
    changed = copy.deepcopy(dict(raw))
    for key, value in changes.items():
        for path in _paths(changed, key):
            holder = changed
            for part in path[:-1]:
                inner = holder.get(part)
                holder[part] = inner if isinstance(inner, dict) else {}
                holder = holder[part]
            holder[path[-1]] = copy.deepcopy(value)
    return changed


def _paths(raw: Mapping[str, Any], key: str) -> list[list[str]]:
    """Where a dotted key leads: to one place, or with `members.*` to one in each that has it."""
    parts = key.split(".")
    if parts[0] != MEMBERS_KEY or len(parts) < 3:
        return [parts]
    members, name = raw.get(MEMBERS_KEY) or {}, parts[1]
    if name != EVERY:
        if name not in members:
            raise ConfigError(f"{key}: there is no member {name!r}{_hint(name, list(members))}")
        return [parts]
    usual = next(iter(MEMBERS))
    kinds = {member: (own or {}).get("kind", usual) for member, own in members.items()}
    fields = {
        member: list(KINDS[kind].model_fields) for member, kind in kinds.items() if kind in KINDS
    }
    found = [[MEMBERS_KEY, m, *parts[2:]] for m, known in fields.items() if parts[2] in known]
    if not found:
        known = sorted({name for own in fields.values() for name in own})
        raise ConfigError(f"{key}: no member has a key {parts[2]!r}{_hint(parts[2], known)}")
    return found


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.4)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {known}"
