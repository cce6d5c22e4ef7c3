"""What goes to Kaggle and how it runs there.

In: the sections `bundle` and `kernel`. Out: their values. Example: `config.kernel.hours`.
"""

from typing import Annotated, Literal

from pydantic import Field

from cspine_kit.core.config.section import Count, NotNegative, Positive, Section

Pin = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9A-Za-z.]*$")]
"""One version of a package."""


class BundleConfig(Section):
    """Names under which the bundle and the kernel go to Kaggle, and the wheels that travel."""

    owner: str | None
    dataset: str
    weights: str
    kernel: str
    license: str
    wheels: tuple[Pin, ...]
    training: tuple[Pin, ...] = ()
    hashes: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = ()
    pythons: Annotated[
        tuple[Annotated[str, Field(pattern=r"^3\.[0-9]+$")], ...], Field(min_length=1)
    ]
    glibc: Annotated[str, Field(pattern=r"^2\.[0-9]+$")]


class KernelConfig(Section):
    """How the offline kernel runs, and what it gives up first when time runs short."""

    hours: Positive
    reserve_minutes: NotNegative
    batch_size: Count
    views: Literal[1, 2, "folds"]
    studies_at_once: Count = 4
    readers: Annotated[int, Field(ge=0)]
    degrade: tuple[Literal["views", "folds", "members", "stride"], ...]

    @property
    def most_views(self) -> int:
        """Of each patch, by one fold model."""
        return 1 if self.views == "folds" else self.views

    def views_of(self, fold: int) -> tuple[bool, ...]:
        """How members of a fold see each patch, the first view first: mirrored or not."""
        return (fold % 2 == 1,) if self.views == "folds" else (False, True)[: self.views]
