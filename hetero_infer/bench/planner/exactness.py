"""The planner beside an exhaustive search, on tiny requests of every kind."""

import math
import time
from pathlib import Path

from hetero_infer.bench.planner.tiny import brute_force, random_request
from hetero_infer.bench.section import Demand, Section
from hetero_infer.planner.check import check_plan
from hetero_infer.planner.search import find_plan
from hetero_infer.spec import InfeasibleError, Objective

SEEDS = range(1000, 1400)  # of which more than 300 have a plan
EXACT = 1e-9


def measure(_: Path) -> Section:
    """At gap 0; the seconds of a batch are recomputed from the plan, by code that the search does not use."""
    worst, feasible, wrong = 0.0, 0, []
    brute_s = planner_s = 0.0
    for seed in SEEDS:
        request = random_request(seed)
        started_s = time.monotonic()
        best_s = brute_force(seed).best_s
        brute_s += time.monotonic() - started_s
        started_s = time.monotonic()
        try:
            plan = find_plan(request, time_limit_s=60, gap=0)
        except InfeasibleError:
            plan = None
        planner_s += time.monotonic() - started_s
        if plan is None or math.isinf(best_s):
            wrong += [seed] if (plan is None) != math.isinf(best_s) else []
            continue
        assert plan.solver
        feasible += 1
        assert plan.estimate
        recomputed = request.objective is Objective.RING
        off = abs((plan.estimate.closed_form_s if recomputed else plan.solver.objective) / best_s - 1)
        worst = max(worst, off)
        if off > EXACT or check_plan(plan, request.model, request.sensitivity):
            wrong.append(seed)
    says = f"{len(SEEDS)} requests, {feasible} with a plan: the worst {worst:.1e} off the exhaustive search"
    return Section(
        title="Tiny requests: the planner and an exhaustive search",
        header=("requests", "with a plan", "worst relative difference", "wrong seeds", "exhaustive s", "planner s"),
        rows=[
            [str(len(SEEDS)), str(feasible), f"{worst:.1e}", str(wrong or "none"), f"{brute_s:.0f}", f"{planner_s:.0f}"]
        ],
        demands=[Demand(f"{says}, {EXACT:g} allowed", not wrong)],
        notes=[
            f"Seeds {SEEDS.start} to {SEEDS.stop - 1}: 1 to 3 devices in every order of every subset, 2 to 4 layers, 2 "
            "or 3 choices, choices for embedding and head on every fourth, links that differ on every fifth, no "
            "quality limit on every third, LLM-PQ's objective and a steady stream on every "
            "seventh."
        ],
        facts=[{"seeds": [SEEDS.start, SEEDS.stop], "feasible": feasible, "worst": worst, "wrong": wrong}],
    )
