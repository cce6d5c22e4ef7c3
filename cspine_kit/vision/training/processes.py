"""Several processes that train one network, as `accelerate launch` starts them; one is the usual.

In: nothing. Out: who is the main process, and sums over all. Example::

    with main_first():                  # the main process makes it, the others find it made
        Path("made").mkdir(exist_ok=True)
"""

from contextlib import AbstractContextManager
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import reduce

PATIENCE = timedelta(days=2)
"""How long processes wait for the main one: caching the real data takes hours."""


def processes() -> PartialState:
    """This process among all: `num_processes`, `process_index`, `is_main_process`."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def main_first() -> AbstractContextManager[None]:
    """The main process goes through the block before the others do."""
    return processes().main_process_first()


def is_main() -> bool:
    """True in the process that writes files."""
    return bool(processes().is_main_process)


def add_up(tensors: list[torch.Tensor]) -> None:
    """Replace float tensors by their sums over all processes, in one exchange."""
    if processes().num_processes == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
    parts = reduce(flat, reduction="sum").split([tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
