"""Why there is no plan, and the way out. Asked only when every pair of micro-batch sizes is proven infeasible."""

from dataclasses import replace

from hetero_infer.planner.check import MIB, missing_mib
from hetero_infer.planner.problem import PlanningProblem, StageTerms, build_problem
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.solver import Solution, solve

WAY_OUT = "lower batch_size, allow fewer bits, or give it more memory"


def why_infeasible(request: PlanRequest, *, time_limit_s: float) -> str:
    """Looks at the smallest micro-batches, which need the least memory: memory alone, quality alone, both together."""
    smallest = min(request.workload.micro_batch_sizes)
    problem = build_problem(request, smallest, smallest)
    return (
        _a_stage_cannot_hold_one_layer(problem)
        or _layers_do_not_fit(problem)
        or _quality_cannot_be_met(request, problem)
        or _memory_and_quality(request, problem, time_limit_s)
    )


def _a_stage_cannot_hold_one_layer(problem: PlanningProblem) -> str | None:
    for j, stage in enumerate(problem.stages):
        needed = min(stage.used_bytes({choice: 1}, ends) for choice in stage.choices for ends in stage.ends)
        if needed > stage.device.memory_bytes:
            return (
                f"{_name(j, stage)} needs {missing_mib(needed)} for one decoder layer at the lowest bits and has "
                f"{stage.device.memory_bytes / MIB:.1f}, it lacks {missing_mib(needed - stage.device.memory_bytes)}; "
                f"{WAY_OUT}, or leave the device out"
            )
    return None


def _layers_do_not_fit(problem: PlanningProblem) -> str | None:
    held = [max(map(stage.most_layers, stage.choices)) for stage in problem.stages]
    missing = problem.num_layers - sum(held)
    if missing <= 0:
        return None

    def lacks(j: int) -> int:
        stage = problem.stages[j]
        needed = min(
            stage.used_bytes({choice: held[j] + missing}, ends) for choice in stage.choices for ends in stage.ends
        )
        return needed - stage.device.memory_bytes

    cheapest = min(range(len(held)), key=lacks)
    return (
        f"at the lowest bits the devices hold {' + '.join(map(str, held))} of the {problem.num_layers} decoder layers, "
        f"{missing} too few; {_name(cheapest, problem.stages[cheapest])} lacks {missing_mib(lacks(cheapest))}; "
        f"{WAY_OUT}"
    )


def _quality_cannot_be_met(request: PlanRequest, problem: PlanningProblem) -> str | None:
    allowed = {choice for stage in problem.stages for choice in stage.choices}
    least = sum(min(row[choice] for choice in allowed) for row in problem.omega)
    if least <= problem.omega_limit:
        return None
    return (
        f"the quality limit Σω ≤ {problem.omega_limit:.6g} {request.sensitivity.unit} cannot be met: the best choice "
        f"of every layer gives {least:.6g}; allow more bits or raise max_perplexity_increase"
    )


def _memory_and_quality(request: PlanRequest, problem: PlanningProblem, time_limit_s: float) -> str:
    unlimited = replace(problem, omega_limit=float("inf"))
    outcome = solve(unlimited, time_limit_s=time_limit_s, gap=1e-3, goal="omega")
    reached = f": the least that fits is {outcome.omega:.6g}" if isinstance(outcome, Solution) else ""
    unit = request.sensitivity.unit
    return (
        f"at bits that fit the devices' memory the quality limit Σω ≤ {problem.omega_limit:.6g} {unit} cannot be met"
        f"{reached}; raise max_perplexity_increase, lower batch_size, or add memory"
    )


def _name(j: int, stage: StageTerms) -> str:
    return f"stage {j} ({stage.device.type} on {stage.device.name})"
