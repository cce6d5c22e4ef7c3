"""Every kind of fault at every stage of the kernel, as a table of functions.

In: nothing. Out: `MATRIX[stage, kind]`, to be called with a `Ground`. Example::

    MATRIX["networks", "hangs"](ground).ok
"""

import cells_machine
import cells_models
import cells_studies

KINDS = ("damaged", "missing", "error", "hangs", "dies", "no room")
"""Wrong bytes; nothing there; an error of disk or device; no answer ever; a process or device
killed; no memory or no disk."""

STAGES = ("listing", "headers", "pixels", "bundle", "loading", "networks", "stack", "writing")
"""In the order in which a run comes to them."""

MATRIX = {**cells_studies.CELLS, **cells_models.CELLS, **cells_machine.CELLS}
