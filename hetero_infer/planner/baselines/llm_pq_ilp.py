"""LLM-PQ's integer programme (Zhao et al., PPoPP '24): one for each device order and prefill size, the best answer.

The plain formulation of the authors' code: a binary z[i, j, b] for layer i on stage j at choice b, contiguity by a row
for every two neighbouring layers and every two stages, every device used, their own count of the decode. Ours are the
costs, the solver, and the quality as a limit Ω in place of a weight θ
(docs/decisions/0011-baselines.md). Time is shared evenly among the programmes that are left; an incumbent counts.
"""

# mypy: disallow-untyped-decorators=False

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import pyomo.environ as pyo
from pyomo.contrib.solver.common.results import TerminationCondition
from pyomo.contrib.solver.solvers.highs import Highs

from hetero_infer.planner.baselines.draft import draft, estimated, obstacle
from hetero_infer.planner.baselines.llm_pq import candidates, their_seconds
from hetero_infer.planner.no_plan import NoPlan
from hetero_infer.planner.problem import LayerChoices, PlanningProblem
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.solver import TOLERANCE, highs_version
from hetero_infer.spec.plan import Plan, SolverReport
from hetero_infer.spec.workload import Phase

GAP = 1e-4  # Gurobi's default, which the authors keep


@dataclass(frozen=True)
class IlpRun:
    """All programmes of a request: the best plan with its report (None where there is none), and how it ended.

    `status`: `optimal`, `time limit`, or `infeasible`. `gap`: to the least bound of all programmes, by the authors'
    count of seconds; None without a plan.
    """

    plan: Plan | None
    seconds: float
    status: str
    gap: float | None


def llm_pq_ilp(request: PlanRequest, time_limit_s: float) -> Plan | NoPlan:
    """The plan of the authors' programmes, all within `time_limit_s`."""
    run = run_llm_pq_ilp(request, time_limit_s=time_limit_s)
    why = "fits no order of the types" if run.status == "infeasible" else f"none found in {time_limit_s:g} s"
    return run.plan or NoPlan(why)


def run_llm_pq_ilp(request: PlanRequest, *, time_limit_s: float) -> IlpRun:
    """Every programme has an even share of the time that is left."""
    started_s = time.monotonic()
    problems = candidates(request)
    answers: list[_Answer] = []
    for position, problem in enumerate(problems):
        left_s = started_s + time_limit_s - time.monotonic()
        if left_s <= 0:
            answers.append(_Answer(None, math.inf, 0.0))
            continue
        answers.append(_solve(problem, left_s / (len(problems) - position)))
    seconds = time.monotonic() - started_s
    bound_s = min((answer.bound_s for answer in answers), default=math.inf)
    best = min(answers, key=lambda answer: answer.objective_s, default=None)
    if best is None or best.layers is None:
        return IlpRun(None, seconds, "infeasible" if math.isinf(bound_s) else "time limit", None)
    problem = problems[answers.index(best)]
    stages = list(zip((stage.device for stage in problem.stages), best.layers, strict=True))
    plan = draft(request, stages, *(problem.micro_batch_size[phase] for phase in Phase))
    assert obstacle(request, plan) is None, "HiGHS broke a limit"
    gap = max(0.0, 1 - bound_s / best.objective_s)
    status = "optimal" if best.objective_s * (1 - GAP) <= bound_s else "time limit"
    report = SolverReport(f"LLM-PQ's ILP, highs {highs_version()}", status, best.objective_s, bound_s, gap, seconds)
    return IlpRun(estimated(request, replace(plan, solver=report)), seconds, status, gap)


def plain_formulation(problem: PlanningProblem) -> pyo.ConcreteModel:
    """Seconds are in units of a typical total, bytes in units of a device's room, ω of the largest."""
    scale_s = problem.typical_s
    passes, slowest = problem.objective.passes, problem.objective.slowest
    m = pyo.ConcreteModel()
    m.layers = pyo.RangeSet(0, problem.num_layers - 1)
    m.stages = pyo.RangeSet(0, len(problem.stages) - 1)
    m.choices = pyo.Set(
        initialize=[(j, b) for j, stage in enumerate(problem.stages) for b in range(len(stage.choices))],
        doc="(j, b): the b-th of the choices that the device of stage j may take",
    )
    m.phases = pyo.Set(initialize=list(Phase))
    m.z = pyo.Var(m.layers, m.choices, domain=pyo.Binary, doc="layer i stands on stage j at choice b")
    m.x = pyo.Var(m.layers, m.stages, bounds=(0, 1), doc="layer i stands on stage j")
    m.q = pyo.Var(m.stages, domain=pyo.Binary, doc="stage j has a quantised layer, and so a buffer to dequantise into")
    m.slowest = pyo.Var(m.phases, domain=pyo.NonNegativeReals, doc="the slowest station")

    def on_stage(j: int) -> Any:
        return range(len(problem.stages[j].choices))

    @m.Constraint(m.layers, doc="every layer is placed once, at one bitwidth")
    def one_choice(m: Any, i: int) -> Any:
        return sum(m.z[i, j, b] for j, b in m.choices) == 1

    @m.Constraint(m.layers, m.stages, doc="where a layer stands")
    def placed(m: Any, i: int, j: int) -> Any:
        return m.x[i, j] == sum(m.z[i, j, b] for b in on_stage(j))

    @m.Constraint(m.layers, m.stages, m.stages, doc="no layer stands before its predecessor")
    def in_order(m: Any, i: int, j: int, k: int) -> Any:
        return m.x[i, j] + m.x[i - 1, k] <= 1 if i and j < k else pyo.Constraint.Skip

    @m.Constraint(m.stages, doc="every device is used")
    def used(m: Any, j: int) -> Any:
        return sum(m.x[i, j] for i in m.layers) >= 1

    @m.Constraint(m.layers, m.choices, doc="a stage with a quantised layer dequantises")
    def dequantising(m: Any, i: int, j: int, b: int) -> Any:
        return m.z[i, j, b] <= m.q[j] if problem.stages[j].choices[b].is_quantised else pyo.Constraint.Skip

    @m.Constraint(m.stages, doc="weights, KV caches and the buffer fit; in whole units: rounding cannot overfill")
    def memory(m: Any, j: int) -> Any:
        stage = problem.stages[j]
        unit = math.gcd(*stage.layer_bytes.values(), stage.dequantise_bytes)
        room = (stage.room_bytes - stage.ends[0].num_bytes) // unit
        layers = sum(
            stage.layer_bytes[choice] // unit * m.z[i, j, b] for i in m.layers for b, choice in enumerate(stage.choices)
        )
        return (layers + stage.dequantise_bytes // unit * m.q[j]) / room <= 1 + 0.5 / room

    if math.isfinite(problem.omega_limit):
        loss = sum(stage.ends[0].omega for stage in problem.stages) + sum(
            problem.omega[i][problem.stages[j].choices[b]] * m.z[i, j, b] for i in m.layers for j, b in m.choices
        )
        m.quality = pyo.Constraint(expr=(loss - problem.omega_limit) / problem.omega_scale <= 0, doc="Σ ω ≤ Ω")

    def compute(phase: Phase, j: int) -> Any:
        stage = problem.stages[j]
        layers = (
            stage.layer_s[phase][choice] * m.z[i, j, b] for i in m.layers for b, choice in enumerate(stage.choices)
        )
        return (stage.ends[0].seconds[phase] + sum(layers)) / scale_s

    def wires(phase: Phase) -> list[float]:
        return [seconds / scale_s for seconds in (*problem.send_s[phase], problem.return_s[phase])]

    @m.Constraint(m.phases, m.stages, doc="no station is slower than the slowest")
    def station(m: Any, phase: Phase, j: int) -> Any:
        return m.slowest[phase] >= compute(phase, j)

    for j, stage in enumerate(problem.stages):
        m.q[j].setlb(int(stage.ends[0].dequantises))
    for phase in Phase:
        m.slowest[phase].setlb(max(wires(phase)))
    m.seconds = pyo.Objective(
        expr=sum(
            passes[phase] * (sum(compute(phase, j) for j in m.stages) + sum(wires(phase)))
            + slowest[phase] * m.slowest[phase]
            for phase in Phase
        )
    )
    return m


@dataclass(frozen=True)
class _Answer:
    """`layers` is None where no plan was found; `bound_s` is infinite where it is proven that there is none."""

    layers: LayerChoices | None
    objective_s: float
    bound_s: float


def _solve(problem: PlanningProblem, time_limit_s: float) -> _Answer:
    if not all(stage.holds_a_layer for stage in problem.stages):
        return _Answer(None, math.inf, math.inf)
    model = plain_formulation(problem)
    results = Highs().solve(
        model,
        time_limit=time_limit_s,
        rel_gap=GAP,
        threads=1,
        solver_options={"mip_feasibility_tolerance": TOLERANCE, "primal_feasibility_tolerance": TOLERANCE},
        raise_exception_on_nonoptimal_result=False,
        load_solutions=False,
    )
    if results.termination_condition in (
        TerminationCondition.provenInfeasible,
        TerminationCondition.infeasibleOrUnbounded,
    ):
        return _Answer(None, math.inf, math.inf)
    bound_s = max(0.0, (results.objective_bound or 0.0) * problem.typical_s)
    if results.incumbent_objective is None:
        return _Answer(None, math.inf, bound_s)
    results.solution_loader.load_vars()
    layers = _read_off(problem, model)
    objective_s = their_seconds(problem, layers)
    return _Answer(layers, objective_s, min(bound_s, objective_s))


def _read_off(problem: PlanningProblem, model: Any) -> LayerChoices:
    layers: list[list[Any]] = [[] for _ in problem.stages]
    for i in range(problem.num_layers):
        j, b = max(model.choices, key=lambda choice: model.z[i, *choice].value)
        layers[j].append(problem.stages[j].choices[b])
    return tuple(map(tuple, layers))
