"""The fastest plan with all devices in the hostfile's order: for tests that need several stages."""

import itertools

from hetero_infer.planner.problem import build_problem
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.search import plan_of
from hetero_infer.planner.solver import Solution, solve
from hetero_infer.spec import Plan


def plan_with_all(request: PlanRequest) -> Plan | None:
    """None where there is none."""
    sizes = request.workload.micro_batch_sizes
    found = []
    for pair in itertools.product(sizes, sizes):
        problem = build_problem(request, *pair)
        outcome = solve(problem, time_limit_s=60, gap=0)
        if isinstance(outcome, Solution):
            found.append((outcome.objective_s, len(found), problem, outcome))
    if not found:
        return None
    _, _, problem, solution = min(found)
    return plan_of(request, problem, solution)
