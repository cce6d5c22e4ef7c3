"""What every section of a config is: strict, frozen, with ranges and names that are checked.

In: keys of a YAML mapping. Out: a section, or an error. Example::

    >>> class Lamp(Section):
    ...     brightness: Share
    >>> Lamp(brightness=0.5)
    Lamp(brightness=0.5)
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]

Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$")]
"""Lower-case letters and digits, single underscores between them: it becomes a folder and the first
part of `<member>__<signal>__<statistic>`."""


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
