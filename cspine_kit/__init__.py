"""cspine_kit: from CT studies of the neck to a scored submission, in one honest chain.

In: a bundle and a folder of DICOM files. Out: eight probabilities. Example::

    from cspine_kit import Predictor

    Predictor(bundle).predict(folder).probabilities
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cspine_kit.infer.predictor import Predictor

__all__ = ["Predictor"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Predictor` on demand: importing the package loads no library."""
    if name == "Predictor":
        from cspine_kit.infer.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
