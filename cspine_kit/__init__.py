"""cspine_kit: from CT studies of the neck to a scored submission, in one honest chain.

In: a scan, and for fractures a bundle. Out: its levels, eight probabilities. Example::

    from cspine_kit import Predictor, study_levels

    study_levels(folder).levels                     # which of C1..C7, where: no bundle is needed
    Predictor(bundle).predict(folder).probabilities
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cspine_kit.infer.levels import study_levels
    from cspine_kit.infer.predictor import Predictor

__all__ = ["Predictor", "study_levels"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Predictor` and `study_levels` on demand: importing the package loads no library."""
    if name == "Predictor":
        from cspine_kit.infer.predictor import Predictor

        return Predictor
    if name == "study_levels":
        from cspine_kit.infer.levels import study_levels

        return study_levels
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
