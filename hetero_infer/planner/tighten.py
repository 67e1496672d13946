"""The next Ω, after a held-out text broke the bound of a plan.

In: what broken plans were to lose (Σω) and what they were measured to lose. Out: a limit that none of them meets, so
that the next plan is another one, and that falls strictly: a search that goes on with it ends.
"""

from collections.abc import Iterable

from hetero_infer.spec.plan import QualityPlan

MARGIN = 0.9  # of what would just do, were the next plan predicted as wrongly as this one


def next_limit(broken: Iterable[QualityPlan]) -> float:
    """The table is off by the factor measured / Σω, so the bound allows a Σω that is smaller by it.

    0 where the bound is 0, or the table says that a plan loses nothing which does: no limit is below that.
    """
    return min(MARGIN * plan.predicted * plan.allowed / _measured(plan) for plan in broken)


def _measured(plan: QualityPlan) -> float:
    assert plan.measured is not None and plan.measured > plan.allowed, "the bound of this plan is not broken"
    return plan.measured
