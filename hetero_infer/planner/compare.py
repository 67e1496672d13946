"""A plan beside what others would have planned: all at the same costs, limits and judge, the recurrence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hetero_infer.planner.baselines.adabits import adabits
from hetero_infer.planner.baselines.llm_pq_heuristic import llm_pq_heuristic
from hetero_infer.planner.baselines.llm_pq_ilp import llm_pq_ilp
from hetero_infer.planner.baselines.memory_proportional import memory_proportional
from hetero_infer.planner.baselines.pipeedge import pipeedge
from hetero_infer.planner.baselines.uniform import uniform
from hetero_infer.planner.no_plan import NoPlan, plan_or_why
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.objective import Objective
from hetero_infer.spec.plan import Plan, PlanEstimate

Baseline = Callable[[PlanRequest], Plan | NoPlan]


@dataclass(frozen=True)
class Compared:
    """What one planner gives. `slower` is its seconds over those of the plan it is compared with."""

    name: str
    outcome: Plan | NoPlan
    slower: float | None
    omega: float | None

    @property
    def estimate(self) -> PlanEstimate | None:
        return self.outcome.estimate if isinstance(self.outcome, Plan) else None

    @property
    def fullest(self) -> tuple[str, float]:
        """The device with the largest share of its memory in use, and the share."""
        plan = self.outcome
        assert isinstance(plan, Plan) and plan.estimate
        shares = [
            (plan.estimate.memory_of(stage) / plan.device_of(stage).memory_bytes, plan.stages[stage].device)
            for stage in range(len(plan.stages))
        ]
        share, device = max(shares)
        return device, share

    def to_json(self) -> dict[str, Any]:
        if isinstance(self.outcome, NoPlan):
            return {"name": self.name, "why_none": self.outcome.why}
        content = self.outcome.to_json()
        device, share = self.fullest
        return {
            "name": self.name,
            "slower": self.slower,
            "omega": self.omega,
            "fullest": {"device": device, "share": share},
            "pipelines": content["pipelines"],
            "estimate": content["estimate"],
            "solver": content["solver"],
        }


def baselines(time_limit_s: float) -> Mapping[str, Baseline]:
    """By name; `time_limit_s` is for LLM-PQ's ILP, which takes it all where it can prove nothing earlier."""
    return {
        "uniform": uniform,
        "by memory": memory_proportional,
        "PipeEdge": pipeedge,
        "adabits": adabits,
        "LLM-PQ's ILP": partial(llm_pq_ilp, time_limit_s=time_limit_s),
        "LLM-PQ's heuristic": llm_pq_heuristic,
    }


def all_planners(time_limit_s: float, gap: float) -> Mapping[str, Baseline]:
    """The baselines, and our search, over all orders, subsets and sizes, with LLM-PQ's objective."""
    theirs = partial(_with_their_objective, time_limit_s=time_limit_s, gap=gap)
    return {**baselines(time_limit_s), "LLM-PQ's objective": theirs}


def compare(request: PlanRequest, plan: Plan, others: Mapping[str, Baseline]) -> tuple[Compared, ...]:
    """`plan`, which has its estimate, and then each of the others."""
    assert plan.estimate
    total_s = plan.estimate.total_s

    def compared(name: str, outcome: Plan | NoPlan) -> Compared:
        if isinstance(outcome, NoPlan):
            return Compared(name, outcome, None, None)
        assert outcome.estimate
        omega = request.sensitivity.total(outcome.layer_choices)
        return Compared(name, outcome, outcome.estimate.total_s / total_s, omega)

    return (compared("this plan", plan), *(compared(name, planner(request)) for name, planner in others.items()))


def _with_their_objective(request: PlanRequest, *, time_limit_s: float, gap: float) -> Plan | NoPlan:
    return plan_or_why(replace(request, objective=Objective.LLM_PQ), time_limit_s=time_limit_s, gap=gap)
