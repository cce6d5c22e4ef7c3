"""Credentials stay out of what is packed, printed and logged.

In: file paths, texts, an environment. Out: an error that names the file (never the secret), or the
text with every credential blotted out. Example::

    >>> refuse_secrets([Path("configs/demo.yaml")])
    >>> sorted(harmless({"KAGGLE_KEY": "0123456789abcdef", "LANG": "C"}))
    ['LANG']
    >>> redact = Redactor.of({"HOME": "nowhere", "KAGGLE_KEY": "0123456789abcdef"})
    >>> redact("the key is 0123456789abcdef")
    'the key is <redacted>'
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cspine_kit.core.errors import ArtifactError

CREDENTIAL_FILES = frozenset(
    {"kaggle.json", "access_token", "access_token.txt", "credentials.json", ".netrc", ".env"}
)
"""Names under which the kaggle client, curl and shells keep credentials."""

BLOT = "<redacted>"
SHORTEST = 6
"""A value shorter than this is no secret, and blotting it would make texts unreadable."""

_HARMLESS = re.compile(
    r"PATH|HOME|LANG|LC_[A-Z]+|TMPDIR|LD_LIBRARY_PATH|PYENV_.*|PIP_.*|SSL_CERT_(FILE|DIR)"
    r"|(REQUESTS|CURL)_CA_BUNDLE|(http|https|no|all)_proxy|(HTTP|HTTPS|NO|ALL)_PROXY"
)
"""Variables that pip may see: where things are and how the index is reached."""

_PATTERNS = (
    re.compile(r"KGAT_[0-9A-Za-z]{16,}"),
    re.compile(r'"key"\s*:\s*"[0-9a-f]{32}"'),
    re.compile(r"(?:KAGGLE_KEY|KAGGLE_API_TOKEN)\s*[=:]\s*[\"']?[0-9A-Za-z_-]{16,}"),
    re.compile(r"Authorization\s*:\s*(?:Basic|Bearer)\s+\S+", re.IGNORECASE),
    re.compile(r"\b(?:Basic|Bearer)\s+[0-9A-Za-z+/=._-]{12,}"),
)
_BINARY = {".safetensors", ".whl"}


def refuse_secrets(files: Iterable[Path]) -> None:
    """Refuse files that are credentials by name or hold what looks like one.

    Raises:
        ArtifactError: names the file and the line, not what stands there.
    """
    for path in files:
        if path.name.lower() in CREDENTIAL_FILES:
            raise ArtifactError(f"{path} is a credential file by its name; it must not be packed")
        if path.suffix in _BINARY:
            continue
        text = path.read_text(errors="replace")
        for pattern in _PATTERNS:
            found = pattern.search(text)
            if found:
                line = text.count("\n", 0, found.start()) + 1
                raise ArtifactError(
                    f"{path}, line {line}, looks like a Kaggle credential; remove it before packing"
                )


def harmless(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment a program that needs no credentials is given."""
    return {name: value for name, value in environment.items() if _HARMLESS.fullmatch(name)}


@dataclass(frozen=True)
class Redactor:
    """Blots known secrets and everything that looks like one out of a text."""

    secrets: tuple[str, ...]

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Redactor":
        """A redactor of every credential that the client would find in this environment."""
        user = environment.get("KAGGLE_USERNAME", "")
        keys = {environment.get("KAGGLE_KEY", ""), environment.get("KAGGLE_API_TOKEN", "")}
        home = Path(environment.get("HOME", "~")).expanduser()
        folders = {home / ".kaggle", home / ".config" / "kaggle"}
        if environment.get("KAGGLE_CONFIG_DIR"):
            folders.add(Path(environment["KAGGLE_CONFIG_DIR"]))
        named = environment.get("KAGGLE_API_TOKEN", "")
        paths = [folder / name for folder in folders for name in sorted(CREDENTIAL_FILES)]
        for path in [*paths, *([Path(named)] if named else [])]:
            try:
                text = path.read_text().strip()
            except (OSError, ValueError):
                continue
            keys.add(text)
            try:
                stored = json.loads(text)
            except ValueError:
                continue
            if isinstance(stored, dict):
                user = user or str(stored.get("username", ""))
                secret = (v for k, v in stored.items() if k not in ("username", "scopes"))
                keys.update(str(value) for value in secret)
        keys = {key for key in keys if len(key) >= SHORTEST}
        basic = {base64.b64encode(f"{user}:{key}".encode()).decode() for key in keys}
        return cls(tuple(sorted(keys | basic, key=len, reverse=True)))

    def __call__(self, text: str) -> str:
        """The text without credentials."""
        for secret in self.secrets:
            text = text.replace(secret, BLOT)
        for pattern in _PATTERNS:
            text = pattern.sub(BLOT, text)
        return text
