"""The last word among plans that the closed form cannot tell apart: the recurrence's, over the real micro-batches.

In: plans with their estimates. Out: those near the best by the closed form, the fastest first by the recurrence, and
what the judge changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hetero_infer.spec.plan import Plan, PlanEstimate


@dataclass(frozen=True)
class Ranking:
    """`plans` by the recurrence, the fastest first; `proposed` is the one with the smallest closed form."""

    plans: tuple[Plan, ...]
    proposed: Plan

    @property
    def best(self) -> Plan:
        return self.plans[0]

    @property
    def saved_s(self) -> float:
        """By taking the judge's first instead of the closed form's: 0 where they are the same."""
        return _estimate(self.proposed).total_s - _estimate(self.best).total_s

    def __str__(self) -> str:
        judged = f"{len(self.plans)} plans near the best judged by the recurrence" if len(self.plans) > 1 else ""
        if self.best is self.proposed:
            return f"{judged}: the closed form's first stays" if judged else "no other plan near the best"
        best, proposed = _estimate(self.best), _estimate(self.proposed)
        above = best.closed_form_s / proposed.closed_form_s - 1
        return (
            f"{judged}: {_described(self.best)} takes {best.total_s:.4g} s, {self.saved_s / proposed.total_s:.2%} less "
            f"than {_described(self.proposed)}; its closed form, {best.closed_form_s:.4f} s, is {above:.2%} above the "
            "least"
        )


def rank(plans: Sequence[Plan], window: float) -> Ranking:
    """Those of `plans` whose closed form is at most the share `window` above the smallest; at least one plan.

    Between plans that the judge finds equal, the smaller closed form goes first, and then the order given.
    """
    proposed = min(plans, key=lambda plan: _estimate(plan).closed_form_s)
    limit_s = _estimate(proposed).closed_form_s * (1 + window)
    near = [plan for plan in plans if _estimate(plan).closed_form_s <= limit_s]
    ranked = sorted(near, key=lambda plan: (_estimate(plan).total_s, _estimate(plan).closed_form_s))
    return Ranking(tuple(ranked), proposed)


def _estimate(plan: Plan) -> PlanEstimate:
    assert plan.estimate, "an estimated plan"
    return plan.estimate


def _described(plan: Plan) -> str:
    """``η 4, ξ 8 (a:0 5, b:0 7 layers)``: micro-batch sizes, and how many decoder layers each device has."""
    stages = (f"{stage.device} {len(plan.decoder_range(number))}" for number, stage in enumerate(plan.stages))
    return f"η {plan.prefill_micro_batch_size}, ξ {plan.decode_micro_batch_size} ({', '.join(stages)} layers)"
