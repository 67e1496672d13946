"""The next Ω, after a held-out text was read with a plan: tighter where the bound is broken, looser where the plan
loses far less than it may.

In: what plans were to lose (Σω) and what they were measured to lose. Out: a limit that is below the Σω of every plan
that broke the bound, so that none of them comes back and a search that goes on with it ends.
"""

import math
from collections.abc import Sequence

from hetero_infer.spec.plan import QualityPlan

MARGIN = 0.9  # of what would just do, were the next plan predicted as wrongly as this one
ENOUGH = 0.5  # of the allowance: a plan that uses so much is not loosened
MOST_LOOSER = 8.0  # times, in one go: a loss about 0 says little of the next plan's


def next_limit(qualities: Sequence[QualityPlan], ceiling: float = math.inf) -> float:
    """The table is off by the factor measured / Σω, so the bound allows a Σω that is other by it. `ceiling` is the
    least Σω that is known to break the bound: halfway to it where the factor says more.

    0 where the bound is 0, or the table says that a plan loses nothing which does: no limit is below that.
    """
    limit = min(quality.predicted * min(MOST_LOOSER, MARGIN * _room(quality)) for quality in qualities)
    if limit < ceiling:
        return limit
    return math.sqrt(max(quality.predicted for quality in qualities) * ceiling)


def uses_enough(qualities: Sequence[QualityPlan]) -> bool:
    """Whether a plan that holds is near its bound, or has nothing that a looser limit would change."""
    return all(quality.predicted == 0 for quality in qualities) or min(map(_room, qualities)) * ENOUGH <= 1


def _room(quality: QualityPlan) -> float:
    """How many times the measured loss may be."""
    assert quality.measured is not None
    return quality.allowed / quality.measured if quality.measured > 0 else math.inf
