"""What the Kaggle service asks of a dataset and a kernel: names, licenses, limits, metadata files.

In: a config, a folder's file sizes. Out: metadata dictionaries, or an error before anything is
sent. Example::

    check_names(config)
    dataset_metadata(config, dataset_ref(config, "code"))["id"]
    kernel_metadata(config)["dataset_sources"]

The limits are those of the kaggle 2.2.4 client and of the service's own error texts; a refusal here
costs nothing, a refusal after an upload costs the upload.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cspine_kit.core.config import Config
from cspine_kit.core.errors import ArtifactError, ConfigError

KERNEL_METADATA, DATASET_METADATA = "kernel-metadata.json", "dataset-metadata.json"
CODE_FILE = "submit.py"
PLACEHOLDER_OWNER = "your-kaggle-name"
"""Stands where nobody is known: fine for a bundle on this machine, refused by a push."""

DATASET_LENGTH, KERNEL_LENGTH = (6, 50), (5, 50)
"""Characters of a slug and of its title; titles are slugs with spaces, so one check does both."""

MAX_FILES = 1000
"""The service: `The file count exceeds the maximum of 1000`."""

MAX_BYTES = 100 * 10**9
"""Private quota that every account has; a bundle near it is a mistake."""

_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_OWNER = re.compile(r"[a-z0-9_-]+")

LICENSES = frozenset(
    {
        "CC0-1.0",
        "CC-BY-SA-3.0",
        "CC-BY-SA-4.0",
        "CC-BY-NC-SA-4.0",
        "GPL-2.0",
        "ODbL-1.0",
        "DbCL-1.0",
        "copyright-authors",
        "other",
        "unknown",
        "CC-BY-4.0",
        "CC-BY-NC-4.0",
        "PDDL",
        "CC-BY-3.0",
        "CC-BY-3.0-IGO",
        "US-Government-Works",
        "CC-BY-NC-SA-3.0-IGO",
        "CDLA-Permissive-1.0",
        "CDLA-Sharing-1.0",
        "CC-BY-ND-4.0",
        "CC-BY-NC-ND-4.0",
        "ODC-BY-1.0",
        "LGPL-3.0",
        "AGPL-3.0",
        "FDL-1.3",
        "EU-ODP-Legal-Notice",
        "apache-2.0",
        "GPL-3.0",
    }
)
"""License names of the service (kaggle-cli, docs/datasets_metadata.md); the client checks none."""


def owner_of(config: Config) -> str:
    """Whose datasets and kernel they are."""
    return config.bundle.owner or PLACEHOLDER_OWNER


def dataset_ref(config: Config, part: str) -> str:
    """`owner/slug` of one of the two datasets, "weights" or "code"."""
    slugs = {"weights": config.bundle.weights, "code": config.bundle.dataset}
    return f"{owner_of(config)}/{slugs[part]}"


def kernel_ref(config: Config) -> str:
    """`owner/slug` of the kernel."""
    return f"{owner_of(config)}/{config.bundle.kernel}"


def check_slug(key: str, slug: str, length: tuple[int, int]) -> None:
    """Refuse a name that the service would refuse or rewrite.

    Raises:
        ConfigError: names the key, the value and the rule.
    """
    low, high = length
    if not low <= len(slug) <= high:
        raise ConfigError(f"{key} {slug!r} has {len(slug)} characters, allowed are {low}..{high}")
    if _SLUG.fullmatch(slug) is None:
        raise ConfigError(
            f"{key} {slug!r} must be lowercase letters and digits in words joined by one dash"
        )


def check_names(config: Config) -> None:
    """Refuse slugs, titles, an owner or a license that the service would refuse or rewrite.

    Raises:
        ConfigError: names the key, the value and the rule.
    """
    bundle = config.bundle
    for key, slug, length in (
        ("bundle.dataset", bundle.dataset, DATASET_LENGTH),
        ("bundle.weights", bundle.weights, DATASET_LENGTH),
        ("bundle.kernel", bundle.kernel, KERNEL_LENGTH),
        ("competition.slug", config.competition.slug, (1, 100)),
    ):
        check_slug(key, slug, length)
    if bundle.weights == bundle.dataset:
        raise ConfigError(
            f"bundle.weights and bundle.dataset are both {bundle.dataset!r}; they go to Kaggle as "
            "two datasets, so that weights are sent once per training"
        )
    if _OWNER.fullmatch(owner_of(config)) is None:
        raise ConfigError(
            f"bundle.owner {bundle.owner!r} is no Kaggle name (lowercase letters, digits, -, _): "
            "it is the last part of your profile's address"
        )
    if bundle.license not in LICENSES:
        raise ConfigError(
            f"bundle.license {bundle.license!r} is not a license of the service; "
            f"there are {', '.join(sorted(LICENSES))}"
        )


def check_owner(config: Config) -> None:
    """Refuse to push under the placeholder.

    Raises:
        ConfigError: there is none in the config, and the client is not logged in.
    """
    if owner_of(config) == PLACEHOLDER_OWNER:
        raise ConfigError(
            "bundle.owner is not known: log the kaggle client in (kaggle auth login), or set your "
            "Kaggle name in the config; then push again"
        )


def check_size(sizes: Mapping[str, int]) -> None:
    """Refuse more files or bytes than a dataset may have, and names that the service alters.

    Args:
        sizes: bytes of each file by name.

    Raises:
        ArtifactError: names the limit and the largest files.
    """
    total = sum(sizes.values())
    if len(sizes) > MAX_FILES:
        raise ArtifactError(
            f"the bundle has {len(sizes)} files, a dataset may have {MAX_FILES}; "
            "ship fewer members or folds"
        )
    if total > MAX_BYTES:
        largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:3]
        raise ArtifactError(
            f"the bundle has {total / 1e9:.1f} GB, a private dataset may have "
            f"{MAX_BYTES / 1e9:.0f} GB; the largest files are {', '.join(largest)}"
        )
    odd = [name for name in sizes if not re.fullmatch(r"[A-Za-z0-9._-]+", name)]
    if odd:
        raise ArtifactError(
            f"bundle file names the service may alter: {', '.join(sorted(odd)[:5])}"
        )


def dataset_metadata(config: Config, ref: str) -> dict[str, Any]:
    """`dataset-metadata.json`; datasets are private unless the client is told otherwise.

    Args:
        config: the license.
        ref: `owner/slug`.
    """
    return {
        "id": ref,
        "title": ref.partition("/")[2].replace("-", " "),
        "licenses": [{"name": config.bundle.license}],
    }


def script_metadata(
    ref: str, code_file: str, *, gpu: bool, **sources: Sequence[str]
) -> dict[str, Any]:
    """`kernel-metadata.json` of a script: private, offline. The title resolves to the slug.

    Args:
        ref: `owner/slug`.
        code_file: its one file.
        gpu: two T4s; False: a session without a GPU.
        sources: what it sees: `datasets`, `competitions`, `kernels` (their output).
    """
    return {
        "id": ref,
        "title": ref.partition("/")[2].replace("-", " "),
        "code_file": code_file,
        "language": "python",
        "kernel_type": "script",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_tpu": False,
        "enable_internet": False,
        **({"machine_shape": "NvidiaTeslaT4"} if gpu else {}),
        # Packages that change under a finished kernel have broken many a rerun.
        "docker_image_pinning_type": "original",
        **{
            f"{name}_sources": list(sources.get(f"{name}s", ()))
            for name in ("dataset", "competition", "kernel", "model")
        },
    }


def kernel_metadata(config: Config) -> dict[str, Any]:
    """`kernel-metadata.json` of the submit kernel."""
    return script_metadata(
        kernel_ref(config),
        CODE_FILE,
        gpu=True,
        datasets=[dataset_ref(config, part) for part in ("code", "weights")],
        competitions=[config.competition.slug],
    )
