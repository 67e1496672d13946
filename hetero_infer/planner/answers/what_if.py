"""Plans of a request and of a changed one, side by side, and what the change is worth."""

from dataclasses import asdict, dataclass
from typing import Any

from hetero_infer.planner.no_plan import NoPlan, plan_or_why
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.plan import Plan


@dataclass(frozen=True)
class Worth:
    """How many times the tokens/s of one plan another has, and between which factors the proofs leave it.

    `least` and `most` compare the closed forms: what the best plan of each could at the worst and at the best give.
    """

    factor: float
    least: float
    most: float

    @classmethod
    def of(cls, now: Plan, changed: Plan) -> "Worth":
        assert now.estimate and now.solver and changed.estimate and changed.solver
        return cls(
            factor=changed.estimate.tokens_per_s / now.estimate.tokens_per_s,
            least=now.solver.bound / changed.solver.objective,
            most=now.solver.objective / changed.solver.bound if changed.solver.bound else float("inf"),
        )

    @property
    def words(self) -> str:
        """``1.32× the tokens/s (in closed form the proofs leave 1.31× to 1.33×)``."""
        return (
            f"{self.factor:.2f}× the tokens/s (in closed form the proofs leave {self.least:.2f}× to {self.most:.2f}×)"
        )


@dataclass(frozen=True)
class WhatIf:
    now: Plan | NoPlan
    changed: Plan | NoPlan

    @property
    def worth(self) -> Worth | None:
        """None where there is nothing to compare."""
        if isinstance(self.now, Plan) and isinstance(self.changed, Plan):
            return Worth.of(self.now, self.changed)
        return None

    @property
    def sentence(self) -> str:
        if self.worth:
            return f"the change is worth {self.worth.words}"
        if isinstance(self.changed, Plan):
            return "the change makes it feasible" if self.is_proven else "with the change a plan is found in the time"
        return "there is no plan with the change" if isinstance(self.now, Plan) else "there is no plan in either case"

    @property
    def is_proven(self) -> bool:
        """What is said of missing plans is no matter of time."""
        return all(outcome.is_proven for outcome in (self.now, self.changed) if isinstance(outcome, NoPlan))

    def to_json(self) -> dict[str, Any]:
        outcomes = {"now": self.now, "changed": self.changed}
        return {
            **{key: plan.to_json() if isinstance(plan, Plan) else asdict(plan) for key, plan in outcomes.items()},
            "worth": self.worth and asdict(self.worth),
            "sentence": self.sentence,
        }


def what_if(request: PlanRequest, changed: PlanRequest, *, time_limit_s: float, gap: float) -> WhatIf:
    """Both planned anew under the same limits, so that they compare."""
    return WhatIf(*(plan_or_why(each, time_limit_s=time_limit_s, gap=gap) for each in (request, changed)))
