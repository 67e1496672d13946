"""Helix's measured layers of Llama-2-70B: how well held-out points are predicted, and plans for mixes of its cards."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from hetero_infer.bench.planner.cases import big_model
from hetero_infer.bench.planner.published import HELIX_MODEL, helix_latency, helix_rows
from hetero_infer.bench.section import Demand, Section
from hetero_infer.cost.fit import Fit, fits
from hetero_infer.cost.holdout import HoldOut
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.search import find_plan
from hetero_infer.spec import (
    UNQUANTISED,
    Cluster,
    Device,
    HeteroInferError,
    InfeasibleError,
    Link,
    Phase,
    Plan,
    SensitivityTable,
    Workload,
)

MOST_OFF = {Phase.PREFILL: 0.04, Phase.DECODE: 0.10}
LINK = Link(alpha_s=1e-4, bytes_per_s=10e9 / 8)  # their machines' 10 Gbit/s; the 0.1 ms are ours
MEMORY_BYTES = {"t4": 16 * 10**9, "l4": 24 * 10**9, "v100-16": 16 * 10**9, "a100-40": 40 * 10**9}  # by their file
MIXES: tuple[Mapping[str, int], ...] = (
    {"a100-40": 4, "t4": 2},
    {"a100-40": 2, "l4": 4},
    {"l4": 4, "t4": 6},
    {"a100-40": 2, "v100-16": 4, "t4": 3},
    {"a100-40": 2, "l4": 2, "v100-16": 2, "t4": 2},
)
WORKLOAD = Workload(batch_size=32, prompt_tokens=512, new_tokens=100)
TIME_LIMIT_S, GAP = 20.0, 1e-3


def measure_holdout(shared: Path) -> Section:
    """Every second point, predicted by each method from the others; the planner uses the better one."""
    found = _fits(shared)
    rows, demands = [], []
    for (device, phase), (used, other) in found.items():
        off = _holdout(used)
        rows.append([device, phase, str(off.points), used.method, *_percents(used), other.method, *_percents(other)])
        says = f"{device}, {phase}: held-out points {off.mean:.1%} off at the mean, at most {MOST_OFF[phase]:.0%}"
        demands.append(Demand(says, off.mean <= MOST_OFF[phase]))
    return Section(
        title="Helix's layers of Llama-2-70B: every second point held out",
        header=("device", "phase", "held out", "used", "mean", "worst", "beside it", "mean", "worst"),
        rows=rows,
        demands=demands,
        notes=[
            "Prefill is measured in whole milliseconds, and so is decode above 100 sequences: an A100's 2 ms are up to "
            "a quarter off by rounding alone."
        ],
        facts=[
            {"device": device, "phase": phase.value, "method": fit.method, "holdout_mean": _holdout(fit).mean}
            for (device, phase), both in found.items()
            for fit in both
        ],
    )


def measure_mixes(shared: Path) -> Section:
    """Plans for mixes of their cards at 16 bits, the only choice they measured."""
    plans = [(mix, _planned(shared, mix)) for mix in MIXES]
    proven = sum(plan is not None and plan.solver is not None and plan.solver.gap <= GAP for _, plan in plans)
    return Section(
        title="Plans for mixes of Helix's cards: Llama-2-70B at 16 bits, 32 prompts of 512 tokens, 100 new ones",
        header=("mix", "stages: layers on each", "left out", "η", "ξ", "tokens/s", "gap", "seconds"),
        rows=[[_counted(mix), *_plan_cells(plan)] for mix, plan in plans],
        demands=[Demand(f"{proven} of {len(MIXES)} mixes planned to a gap of {GAP:.1%}, at least 4", proven >= 4)],
        notes=[
            "Each card is a host of its own with the memory of their file (GB of 10⁹ bytes); links of 10 Gbit/s and "
            "0.1 ms. Prefill costs what as many tokens of one batch cost, decode what they measured, whatever the "
            "past; embedding and head by the spec sheet."
        ],
        facts=[_mix_facts(mix, plan) for mix, plan in plans if plan],
    )


def _planned(shared: Path, mix: Mapping[str, int]) -> Plan | None:
    """None if time ran out before there was a plan. All mixes hold the model."""
    try:
        return find_plan(_request(shared, mix), time_limit_s=TIME_LIMIT_S, gap=GAP)
    except InfeasibleError:
        raise
    except HeteroInferError:
        return None


def _fits(shared: Path) -> dict[tuple[str, Phase], tuple[Fit, ...]]:
    points: dict[tuple[str, Phase], dict[tuple[int, int], float]] = defaultdict(dict)
    for row in helix_rows(shared):
        tokens = row.input_tokens if row.phase is Phase.PREFILL else row.past_tokens
        points[row.device, row.phase][row.batch, tokens] = row.seconds
    return {key: fits(measured, key[1]) for key, measured in points.items()}


def _holdout(fit: Fit) -> HoldOut:
    assert fit.holdout, "their tables have dozens of points"
    return fit.holdout


def _percents(fit: Fit) -> tuple[str, str]:
    return f"{_holdout(fit).mean:.1%}", f"{_holdout(fit).worst:.1%}"


def _request(shared: Path, mix: Mapping[str, int]) -> PlanRequest:
    model = big_model(HELIX_MODEL)
    types = [gpu for gpu, count in mix.items() for _ in range(count)]
    cards = tuple(Device(f"node-{n}", 0, gpu, MEMORY_BYTES[gpu]) for n, gpu in enumerate(types))
    return PlanRequest(
        model=model,
        model_facts={"path": HELIX_MODEL, "digest": HELIX_MODEL, "num_hidden_layers": model.num_hidden_layers},
        cluster=Cluster(cards, LINK),
        workload=WORKLOAD,
        latency=helix_latency(shared),
        sensitivity=SensitivityTable(
            "none", HELIX_MODEL, "none", "nats", (UNQUANTISED,), ((0.0,),) * model.num_hidden_layers
        ),
        choices=(UNQUANTISED,),
        omega_limit=math.inf,
        max_perplexity_increase=math.inf,
    )


def _plan_cells(plan: Plan | None) -> list[str]:
    if plan is None:
        return [f"no plan in {TIME_LIMIT_S:.0f} s", *[""] * 6]
    assert plan.estimate and plan.solver
    return [
        _stages(plan),
        _counted(_left_out(plan)) or "none",
        str(plan.prefill_micro_batch_size),
        str(plan.decode_micro_batch_size),
        f"{plan.estimate.tokens_per_s:.1f}",
        f"{plan.solver.gap:.2%}",
        f"{plan.solver.seconds:.1f}",
    ]


def _mix_facts(mix: Mapping[str, int], plan: Plan) -> dict[str, object]:
    assert plan.estimate and plan.solver
    return {
        "mix": dict(mix),
        "stages": [
            {"device": plan.device_of(stage).type, "layers": len(plan.decoder_range(stage))}
            for stage in range(len(plan.stages))
        ],
        "left_out": dict(_left_out(plan)),
        "tokens_per_s": plan.estimate.tokens_per_s,
        "gap": plan.solver.gap,
        "seconds": plan.solver.seconds,
    }


def _counted(counts: Mapping[str, int]) -> str:
    return " + ".join(f"{count} {gpu}" for gpu, count in counts.items())


def _left_out(plan: Plan) -> Counter[str]:
    users = {stage.device for stage in plan.stages}
    return Counter(device.type for device in plan.devices if device.name not in users)


def _stages(plan: Plan) -> str:
    """In pipeline order, equal neighbours together: ``"a100-40: 23 22, l4: 9 9 8 9"``."""
    stages = [(plan.device_of(stage).type, len(plan.decoder_range(stage))) for stage in range(len(plan.stages))]
    return ", ".join(
        f"{gpu}: {' '.join(str(layers) for _, layers in group)}"
        for gpu, group in itertools.groupby(stages, key=lambda stage: stage[0])
    )
