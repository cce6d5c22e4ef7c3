"""Studies that a member could not score: another member's slices stand in, as in the kernel.

In: the out-of-fold slice table with holes. Out: the table without them, and how many studies each
member is spoken for in. Example::

    slices = pd.read_parquet(paths.table("oof_slices"))
    slices, counts = complete(slices)      # such as {"effnet": 2}
"""

import pandas as pd

from cspine_kit.stack.fallback.stand_ins import fit_stand_ins

UNIT = ["study_uid", "model_fold"]


def complete(slices: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows of every member for every study that any member scored.

    Args:
        slices: contract `oof_slices`, where (study, member) pairs may be missing.

    Returns:
        The table, with the rows of the member that correlates best mapped onto the missing one's
        scale (`StandIns.rows`) and the rest as it was; and the filled studies by member.
    """
    members = sorted(slices["member"].unique())
    present = slices.groupby(UNIT, sort=True)["member"].nunique()
    holed = present.index[present < len(members)]
    if holed.empty:
        return slices, {}
    stand_ins = fit_stand_ins(slices)
    at = pd.MultiIndex.from_frame(slices[UNIT])
    filled, counts = [slices], dict.fromkeys(members, 0)
    for _, own in slices[at.isin(holed)].groupby(UNIT, sort=True):
        rows = {str(name): part for name, part in own.groupby("member")}
        for member in members:
            if member not in rows:
                filled.append(stand_ins.rows(member, rows))
                counts[member] += 1
    table = pd.concat(filled, ignore_index=True)
    return table, {member: count for member, count in counts.items() if count}
