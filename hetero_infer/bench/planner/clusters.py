"""LLM-PQ's clusters, and two larger ones: how long a proven plan takes, and beside it LLM-PQ's own programme."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hetero_infer.bench.planner.cases import Level, OmegaShape, case_request, paper_clusters
from hetero_infer.bench.section import Demand, Section
from hetero_infer.planner.baselines.llm_pq_ilp import IlpRun, run_llm_pq_ilp
from hetero_infer.planner.search import find_plan
from hetero_infer.spec import InfeasibleError, Plan, Workload

GAP = 1e-3
TIME_LIMIT_S = {8: 60.0, 16: 180.0}  # by the most devices
ILP_LIMIT_S = 60.0
LONG_PROMPTS, LONG_ANSWERS = Workload(32, 512, 100), Workload(32, 128, 200)
LARGER: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "12 devices": ("opt-30b", {"t4": 4, "p100-12": 4, "v100-32": 4}),
    "16 devices": ("bloom-176b", {"t4": 4, "p100": 4, "v100-32": 4, "a100-40": 4}),
}


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    counts: Mapping[str, int]
    workload: Workload
    shape: OmegaShape
    level: Level

    @property
    def num_devices(self) -> int:
        return sum(self.counts.values())

    @property
    def limit_s(self) -> float:
        return next(limit_s for most, limit_s in TIME_LIMIT_S.items() if self.num_devices <= most)

    @property
    def is_beside_the_ilp(self) -> bool:
        """The paper's own workload at the middle Ω."""
        return (self.shape, self.level, self.workload) == ("depth", "mid", LONG_PROMPTS) and self.num_devices <= 8


@dataclass(frozen=True)
class Outcome:
    """`plan` is None where there is provably none."""

    case: Case
    plan: Plan | None
    why_none: str
    seconds: float
    ilp: IlpRun | None

    @property
    def is_proven(self) -> bool:
        return self.plan is None or (self.plan.solver is not None and self.plan.solver.gap <= GAP)


def cases(shared: Path) -> Iterator[Case]:
    """Every cluster at all three Ω; at the middle one also with a random ω and with short prompts and long answers."""
    clusters = [(str(c.case), c.model, c.counts) for c in paper_clusters(shared)]
    clusters += [(name, model, counts) for name, (model, counts) in LARGER.items()]
    for cluster in clusters:
        for level in ("4", "mid", "8"):
            yield Case(*cluster, LONG_PROMPTS, "depth", level)
        yield Case(*cluster, LONG_PROMPTS, "random", "mid")
        yield Case(*cluster, LONG_ANSWERS, "depth", "mid")


def measure(shared: Path) -> Section:
    outcomes = [_plan(shared, case) for case in cases(shared)]
    return Section(
        title="LLM-PQ's clusters, roofline with a dequantise-then-multiply prefill, batch 32: proven plans",
        header=(
            *("cluster", "model", "devices", "workload", "ω, Ω", "s", "gap", "tokens/s", "used", "η, ξ"),
            *("LLM-PQ's ILP: s", "its gap", "its time over ours"),
        ),
        rows=[_cells(outcome) for outcome in outcomes],
        demands=list(_demands(outcomes)),
        notes=[
            f"{outcome.case.name}, {outcome.case.shape} ω, Ω {outcome.case.level}: {outcome.why_none}"
            for outcome in outcomes
            if outcome.why_none
        ],
        facts=[_facts(outcome) for outcome in outcomes],
    )


def _plan(shared: Path, case: Case) -> Outcome:
    request = case_request(shared, case.model, case.counts, case.workload, shape=case.shape, level=case.level)
    started_s = time.monotonic()
    plan, why_none = None, ""
    try:
        plan = find_plan(request, time_limit_s=case.limit_s, gap=GAP)
    except InfeasibleError as error:
        why_none = f"no plan exists: {error}"
    seconds = time.monotonic() - started_s
    ilp = run_llm_pq_ilp(request, time_limit_s=ILP_LIMIT_S) if case.is_beside_the_ilp else None
    return Outcome(case, plan, why_none, seconds, ilp)


def _demands(outcomes: list[Outcome]) -> Iterator[Demand]:
    unproven = [outcome for outcome in outcomes if not outcome.is_proven]
    yield Demand(f"{len(outcomes) - len(unproven)} of {len(outcomes)} proven to a gap of {GAP:g}", not unproven)
    for most, limit_s in TIME_LIMIT_S.items():
        seconds = [outcome.seconds for outcome in outcomes if outcome.case.limit_s == limit_s]
        median_s = sorted(seconds)[len(seconds) // 2]
        says = f"up to {most} devices: {max(seconds):.1f} s at the most, {median_s:.1f} s median"
        yield Demand(f"{says}, {limit_s:g} s allowed", max(seconds) <= limit_s)


def _cells(outcome: Outcome) -> list[str]:
    case, plan, ilp = outcome.case, outcome.plan, outcome.ilp
    cards = " + ".join(f"{count} {gpu}" for gpu, count in case.counts.items())
    lengths = f"{case.workload.prompt_tokens}/{case.workload.new_tokens}"
    cells = [case.name, case.model, cards, lengths, f"{case.shape}, {case.level}", f"{outcome.seconds:.1f}"]
    if plan is None:
        return [*cells, "no plan exists", *[""] * 6]
    assert plan.solver and plan.estimate
    sizes = f"{plan.prefill_micro_batch_size}, {plan.decode_micro_batch_size}"
    used = f"{len(plan.stages)} of {case.num_devices}"
    cells += [f"{plan.solver.gap:.1e}", f"{plan.estimate.tokens_per_s:.2f}", used, sizes]
    if ilp is None:
        return [*cells, "", "", ""]
    if ilp.plan is None:
        return [*cells, f"{ilp.seconds:.1f}", ilp.status, ""]
    assert ilp.plan.estimate
    slower = ilp.plan.estimate.total_s / plan.estimate.total_s
    return [*cells, f"{ilp.seconds:.1f}", f"{ilp.gap:.1e}", f"{slower:.3f}"]


def _facts(outcome: Outcome) -> dict[str, object]:
    plan, ilp, case = outcome.plan, outcome.ilp, outcome.case
    found: dict[str, object] = {
        "cluster": case.name,
        "devices": dict(case.counts),
        "prompt_tokens": case.workload.prompt_tokens,
        "omega": [case.shape, case.level],
        "seconds": outcome.seconds,
        "why_none": outcome.why_none,
    }
    if plan and plan.solver and plan.estimate:
        found |= {
            "objective": plan.solver.objective,
            "bound": plan.solver.bound,
            "order_bound": plan.solver.order_bound,
            "searched": plan.solver.searched,
            "total_s": plan.estimate.total_s,
            "stages": _stages(plan),
        }
    if ilp:
        total_s = ilp.plan.estimate.total_s if ilp.plan and ilp.plan.estimate else None
        found["llm_pq_ilp"] = {"seconds": ilp.seconds, "status": ilp.status, "gap": ilp.gap, "total_s": total_s}
        found["llm_pq_ilp"]["stages"] = _stages(ilp.plan) if ilp.plan else []
    return found


def _stages(plan: Plan) -> list[list[object]]:
    return [[stage.device, [str(choice) for choice in stage.layers]] for stage in plan.stages]
