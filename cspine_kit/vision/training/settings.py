"""How this machine trains: precision, determinism, trackers; checked before any work.

In: the config's section `training`. Out: what accelerate and torch are told. Example::

    check_training(config.training)
    with determinism(on=config.training.deterministic):
        precision(config.training)            # "no" on a CPU
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from cspine_kit.core.config import TrainingConfig
from cspine_kit.core.errors import ConfigError

NATIVE_BF16 = (8, 0)
"""Compute capability from which bf16 is computed and not emulated (Ampere; a T4 has 7.5)."""


def precision(training: TrainingConfig) -> str:
    """`no`, `fp16` or `bf16`; `auto` looks at the first GPU.

    Raises:
        ConfigError: this machine cannot do it.
    """
    gpu = torch.cuda.is_available()
    native = gpu and torch.cuda.get_device_capability() >= NATIVE_BF16
    if training.precision == "auto":
        return "bf16" if native else "fp16" if gpu else "no"
    if training.precision == "fp16" and not gpu:
        raise ConfigError("training.precision: fp16 needs a GPU; did you mean 'auto'?")
    if training.precision == "bf16" and gpu and not native:
        raise ConfigError(
            f"training.precision: {torch.cuda.get_device_name()} has no bf16 of its own; "
            "did you mean 'auto' (fp16 there)?"
        )
    return training.precision


def check_training(training: TrainingConfig) -> None:
    """Refuse what this machine or its packages cannot do.

    Raises:
        ConfigError: names the key and what there is.
    """
    precision(training)
    installed = [str(tracker) for tracker in get_available_trackers()]
    if training.log_with is not None and training.log_with not in installed:
        known = training.log_with in [str(tracker) for tracker in LoggerType]
        problem = (
            f"{training.log_with} is not installed: pip install {training.log_with}"
            if known
            else f"{training.log_with!r} is no tracker of accelerate"
        )
        raise ConfigError(f"training.log_with: {problem}; installed are {installed}")


@contextmanager
def determinism(*, on: bool) -> Iterator[None]:
    """torch as training wants it, and afterwards as it was: algorithms and random numbers.

    Args:
        on: the same weights again on the same GPU, at the price of speed.
    """
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
    )
    if on:  # read where cuBLAS starts; it changes nothing else
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on, warn_only=True)
    cudnn.benchmark, cudnn.deterministic = not on, on
    try:
        with torch.random.fork_rng(
            [torch.cuda.current_device()] if torch.cuda.is_available() else []
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, cudnn.deterministic = before[2:]
