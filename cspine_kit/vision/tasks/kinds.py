"""The task of every kind of network.

In: a network's section of the config. Out: its task. Example::

    task_of(config.vertebra).heads
"""

from collections.abc import Callable
from typing import Any

from cspine_kit.core.config import ModelConfig
from cspine_kit.vision.tasks.area import AreaTask
from cspine_kit.vision.tasks.boxes import BoxesTask
from cspine_kit.vision.tasks.levels import LevelsTask, StudyTask
from cspine_kit.vision.tasks.plain import PlainTask
from cspine_kit.vision.tasks.segment import SegmentTask
from cspine_kit.vision.tasks.slices import SlicesTask
from cspine_kit.vision.tasks.task import Task
from cspine_kit.vision.tasks.vertebra import VertebraTask

TASKS: dict[str, Callable[[Any], Task]] = {
    "vertebra": lambda config: (AreaTask if config.target == "area" else VertebraTask)(config),
    "segment": SegmentTask,
    "slices": lambda config: (PlainTask if config.one_output else SlicesTask)(config),
    "levels": LevelsTask,
    "study": StudyTask,
    "volume": LevelsTask,
    "boxes": BoxesTask,
}


def task_of(config: ModelConfig) -> Task:
    """The task of a network by its kind."""
    return TASKS[config.kind](config)
