"""Which competition is read, and how its studies are split.

In: the sections `competition` and `folds`. Out: their values. Example: `config.folds.n`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_serializer

from cspine_kit.core.config.section import Count, Section, Share

Variety = Literal[
    "starts_in_c2",
    "ends_at_c5",
    "head_only",
    "chest_only",
    "long_field",
    "coarse",
    "degenerated",
    "upside_down",
    "prone",
    "tilted",
    "short_field",
    "head_and_neck",
    "small",
    "tall",
]
"""What a phantom's study may be in place of a whole, plain neck."""

USUAL_VARIETIES: tuple[Variety, ...] = get_args(Variety)[:8]
"""Those that a phantom takes where its config names none."""


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
    files: Literal["nifti"] | None = None
    varieties: Annotated[tuple[Variety, ...], Field(min_length=1)] | None = None

    @model_serializer(mode="wrap")
    def _told(self, plain: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Without `files` and `varieties` where nobody set them, as older phantoms tell it."""
        return {key: value for key, value in plain(self).items() if value is not None}


class PseudoMasksConfig(Section):
    """A folder of masks that other tools made, and what they count beside the competition's own."""

    dir: Path
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5


class CompetitionConfig(Section):
    """Which competition folder is read, what else is learned from, and whether the kit writes the
    competition itself."""

    dir: Path
    slug: str
    extra: tuple[Path, ...] = ()
    pseudo_masks: PseudoMasksConfig | None = None
    phantom: PhantomConfig | None = None


class FoldsConfig(Section):
    """Cross-validation: grouped, stratified; a CSV `file` wins over the generator."""

    n: Annotated[int, Field(ge=2)]
    file: Path | None = None
