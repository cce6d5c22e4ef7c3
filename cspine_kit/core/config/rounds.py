"""Networks that earlier rounds train to teach later ones, and what they are called.

In: a network's name. Out: those of its rounds. Example::

    >>> round_name("vertebra", 2), list(halves_of("axial", 1))
    ('vertebra_round_2', ['axial_half_0', 'axial_half_1'])

In the vertebra stage a round learns from unmasked studies what the round before says of them. In
the fracture stage it would judge the studies that it has learned from, too sure of them: there each
round but the last is two networks, each of which learns from one half of the training folds and
judges the other half.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Half:
    """One of the two networks of a member's round.

    Attributes:
        member: the member whose labels it sharpens.
        number: its round.
        side: 0 or 1, the half of the training folds that it learns from.
    """

    member: str
    number: int
    side: int


def round_name(name: str, number: int) -> str:
    """What a network is called in a round of pseudo-labels."""
    return f"{name}_round_{number}" if number else name


def halves_of(member: str, rounds: int) -> dict[str, Half]:
    """The networks that a member's rounds train before it, by name, in their order."""
    return {
        f"{round_name(member, number)}_half_{side}": Half(member, number, side)
        for number in range(rounds)
        for side in (0, 1)
    }
