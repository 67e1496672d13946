"""Nobody plans faster at the same quality: ours beside every baseline, at the same costs, by the same judge.

Three tables: LLM-PQ's clusters by the roofline, OPT-30B on the cards whose layers LLM-PQ measured, random clusters.
The judge is the recurrence, which the simulation of the schedules equals.
"""

import math
import multiprocessing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hetero_infer.bench.planner.cases import case_request, paper_clusters
from hetero_infer.bench.planner.published import llm_pq_latency
from hetero_infer.bench.planner.random_clusters import random_cluster_request
from hetero_infer.bench.section import Demand, Section
from hetero_infer.planner.compare import Compared, baselines, compare
from hetero_infer.planner.no_plan import NoPlan, plan_or_why
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec import Plan, Workload

GAP, TIME_LIMIT_S = 1e-3, 60.0
ILP_LIMIT_S = {"paper": 20.0, "measured": 10.0, "random": 1.5}
WORKLOAD = Workload(32, 512, 100)
MEASURED_MIXES = (
    (3, 1),
    (4, 0),
    (2, 1),
    (1, 2),
    (2, 2),
    (4, 1),
    (4, 2),
    (6, 0),
)  # T4 and V100; the paper's 3 and 9 first
NUM_RANDOM, FIRST_SEED = 100, 1
LITTLE = 1.02  # of a win below this the reason is given
PROCESSES = 2


@dataclass(frozen=True)
class Job:
    """A request, made where it is planned, and our plan if somebody has it."""

    name: str
    request: Callable[[], PlanRequest]
    ilp_limit_s: float
    plan: Plan | None = None


@dataclass(frozen=True)
class Duel:
    """Ours first, then the baselines; none where no plan exists at all."""

    name: str
    rows: tuple[Compared, ...]

    @property
    def plan(self) -> Plan:
        assert isinstance(self.rows[0].outcome, Plan)
        return self.rows[0].outcome

    @property
    def others(self) -> Mapping[str, float]:
        """How many times as long each takes that has a plan."""
        return {row.name: row.slower for row in self.rows[1:] if row.slower is not None}

    @property
    def nearest(self) -> Compared | None:
        """The fastest baseline."""
        return min((row for row in self.rows[1:] if row.slower), key=lambda row: row.slower or math.inf, default=None)

    @property
    def gap(self) -> float:
        """What our plan is proven to, as it says itself."""
        assert self.plan.solver
        return self.plan.solver.gap

    @property
    def is_won(self) -> bool:
        """No baseline is faster, beyond the gap. All keep Ω."""
        return all(slower >= 1 - self.gap for slower in self.others.values())


def measure_paper_clusters(shared: Path, plans: Mapping[int, Plan] | None = None) -> Section:
    """By the roofline, middle Ω of the depth-shaped ω, 512 + 100 tokens. `plans`: ours by case, if already made."""
    jobs = [
        Job(
            f"{cluster.case}: {cluster.model} on {_cards(cluster.counts)}",
            partial(case_request, shared, cluster.model, cluster.counts, WORKLOAD),
            ILP_LIMIT_S["paper"],
            plans.get(cluster.case) if plans else None,
        )
        for cluster in paper_clusters(shared)
    ]
    title = "LLM-PQ's clusters, roofline with a dequantise-then-multiply prefill: seconds of each baseline over ours"
    return _each(title, jobs)


def measure_published_kernels(shared: Path) -> Section:
    """By the layer times that LLM-PQ's authors measured, with their 3- and 4-bit kernels without a batched prefill."""
    jobs = [
        Job(f"OPT-30B on {_cards(counts)}", partial(published_request, shared, counts), ILP_LIMIT_S["measured"])
        for counts in ({"t4": t4, "v100-32": v100} for t4, v100 in MEASURED_MIXES)
    ]
    title = "OPT-30B by LLM-PQ's measured layer times: seconds of each baseline over ours"
    return _each(title, jobs)


def measure_random_clusters(_: Path) -> Section:
    """`NUM_RANDOM` clusters for which there is a plan at all, from `FIRST_SEED` on."""
    limit_s = ILP_LIMIT_S["random"]
    duels: list[Duel] = []
    without: dict[str, NoPlan] = {}
    last = FIRST_SEED - 1
    while len(duels) < NUM_RANDOM:
        seeds = range(last + 1, last + 1 + NUM_RANDOM - len(duels))
        jobs = [Job(f"seed {seed}", partial(random_cluster_request, seed), limit_s) for seed in seeds]
        more, none = _duels(jobs)
        duels, without, last = duels + more, without | none, seeds[-1]
    names = list(baselines(limit_s))
    table = []
    for name in names:
        slower = [duel.others[name] for duel in duels if name in duel.others]
        table.append(
            (
                name,
                f"{len(slower)} of {len(duels)}",
                *(f"{value:.3f}" for value in (min(slower), geometric_mean(slower), max(slower))),
                str(sum(duel.nearest is not None and duel.nearest.name == name for duel in duels)),
            )
        )
    best = [duel.nearest.slower for duel in duels if duel.nearest and duel.nearest.slower]
    narrow = Counter(why_near(duel) for duel in duels if duel.nearest and (duel.nearest.slower or 2) < LITTLE)
    return Section(
        f"{len(duels)} random clusters (seeds {FIRST_SEED} to {last}): seconds of each baseline over ours",
        ("baseline", "has a plan", "least", "geometric mean", "most", "times the nearest"),
        table,
        [demand(duels)],
        [
            "2 to 8 devices of 2 to 4 types on 1 or 2 hosts, 12 to 20 layers, batch 16, roofline; seeds without a plan "
            f"are left out. LLM-PQ's ILP had {limit_s:g} s a cluster, for all its orders and sizes.",
            f"The best baseline of each cluster: geometric mean {geometric_mean(best):.3f}; "
            f"{sum(slower < LITTLE for slower in best)} within {LITTLE - 1:.0%} of ours.",
            *_undecided(without),
            *(f"{count} of these: {why}" for why, count in narrow.most_common()),
        ],
        [_facts(duel) for duel in duels],
    )


def published_request(shared: Path, counts: Mapping[str, int]) -> PlanRequest:
    there = {gpu: count for gpu, count in counts.items() if count}
    return case_request(shared, "opt-30b", there, WORKLOAD, latency=llm_pq_latency(shared))


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else math.nan


def _duels(jobs: Sequence[Job]) -> tuple[list[Duel], dict[str, NoPlan]]:
    """In the order of `jobs`; those that we have no plan for apart, by name."""
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        found = list(zip(jobs, pool.map(_duel, jobs), strict=True))
    return (
        [duel for _, duel in found if isinstance(duel, Duel)],
        {job.name: none for job, none in found if isinstance(none, NoPlan)},
    )


def _duel(job: Job) -> Duel | NoPlan:
    request = job.request()
    plan = job.plan or plan_or_why(request, time_limit_s=TIME_LIMIT_S, gap=GAP)
    return plan if isinstance(plan, NoPlan) else Duel(job.name, compare(request, plan, baselines(job.ilp_limit_s)))


def _undecided(without: Mapping[str, NoPlan]) -> list[str]:
    return [
        f"{name}: no plan in {TIME_LIMIT_S:g} s, nor a proof that there is none"
        for name, none in without.items()
        if not none.is_proven
    ]


def _each(title: str, jobs: Sequence[Job]) -> Section:
    """A row for each cluster, and the geometric means below."""
    (duels, without), ilp_limit_s = _duels(jobs), jobs[0].ilp_limit_s
    names = list(baselines(ilp_limit_s))
    table = [
        (
            duel.name,
            f"{duel.plan.estimate.tokens_per_s:.1f}" if duel.plan.estimate else "",
            *(f"{duel.others[name]:.3f}" if name in duel.others else "none" for name in names),
        )
        for duel in duels
    ]
    means = [geometric_mean([duel.others[name] for duel in duels if name in duel.others]) for name in names]
    return Section(
        title,
        ("cluster", "tokens/s", *names),
        [*table, ("geometric mean", "", *(f"{mean:.3f}" for mean in means))],
        [demand(duels)],
        [
            f"none: no plan within memory and Ω by that rule. LLM-PQ's ILP had {ilp_limit_s:g} s, for all its orders "
            "and sizes.",
            *(f"{name}: proven to have no plan within memory and Ω" for name in without if without[name].is_proven),
            *_undecided(without),
            *(
                f"{duel.name}: {why_near(duel)} ({duel.nearest.slower:.3f})"
                for duel in duels
                if duel.nearest and duel.nearest.slower and duel.nearest.slower < LITTLE
            ),
        ],
        [_facts(duel) for duel in duels],
    )


def demand(duels: Sequence[Duel]) -> Demand:
    lost = [duel for duel in duels if not duel.is_won]
    says = f"no baseline is faster than ours beyond the gap, on {len(duels)} clusters"
    if lost:
        says += "; one is on " + ", ".join(
            f"{duel.name} ({duel.nearest.name}, {duel.nearest.slower:.4f})" for duel in lost if duel.nearest
        )
    return Demand(says, not lost)


def why_near(duel: Duel) -> str:
    """What the nearest baseline has in common with our plan."""
    nearest = duel.nearest
    assert nearest and isinstance(nearest.outcome, Plan)
    ours, theirs = duel.plan, nearest.outcome
    if _types(ours) != _types(theirs):
        return f"{nearest.name} has another order or subset of the devices"
    if _sizes_of_stages(ours) != _sizes_of_stages(theirs):
        return f"{nearest.name} has the same devices in the same order, and moves some layers"
    others = [
        word
        for word, mine, other in (
            ("bits", sorted(ours.layer_choices), sorted(theirs.layer_choices)),
            ("prefill size", ours.prefill_micro_batch_size, theirs.prefill_micro_batch_size),
            ("decode size", ours.decode_micro_batch_size, theirs.decode_micro_batch_size),
        )
        if mine != other
    ]
    return f"{nearest.name} has the same partition, " + (f"other {' and '.join(others)}" if others else "and all else")


def _types(plan: Plan) -> list[str]:
    return [plan.device_of(stage).timed_as for stage in range(len(plan.stages))]


def _sizes_of_stages(plan: Plan) -> list[int]:
    return [len(stage.layers) for stage in plan.stages]


def _cards(counts: Mapping[str, int]) -> str:
    return " + ".join(f"{count}×{gpu}" for gpu, count in counts.items() if count)


def _facts(duel: Duel) -> dict[str, object]:
    solver, estimate = duel.plan.solver, duel.plan.estimate
    return {
        "cluster": duel.name,
        "total_s": estimate and estimate.total_s,
        "gap": solver and solver.gap,
        "slower": dict(duel.others),
        "why_none": {row.name: row.outcome.why for row in duel.rows if isinstance(row.outcome, NoPlan)},
        "nearest": duel.nearest and {"name": duel.nearest.name, "why_near": why_near(duel)},
    }
