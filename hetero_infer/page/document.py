"""`draw_page`: the whole page of a plan. In: the plan, its request, what else is known. Out: HTML in one string."""

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from hetero_infer.page import charts, markup
from hetero_infer.page.lanes import Lane, Piece, lanes
from hetero_infer.page.pareto_chart import pareto_chart
from hetero_infer.pipeline.gantt import Box, boxes
from hetero_infer.pipeline.rehearsal import rehearse
from hetero_infer.planner.answers.pareto import Front, ParetoPoint
from hetero_infer.planner.compare import Compared
from hetero_infer.planner.estimate import PlanCosts, estimate_plan
from hetero_infer.planner.request import PlanRequest
from hetero_infer.report import (
    comparison_reasons,
    comparison_rows,
    device_words,
    duration,
    increase_words,
    layers_words,
    predicted,
    run_lengths,
    stages_words,
)
from hetero_infer.spec import Objective, Plan, SolverReport
from hetero_infer.spec.plan import PlanEstimate, num_micro_batches

SAME = 1e-6  # seconds that differ by a smaller share are told as one


def draw_page(
    plan: Plan,
    request: PlanRequest,
    *,
    facts: Sequence[tuple[str, str]] = (),
    front: Front | None = None,
    compared: Sequence[Compared] = (),
) -> str:
    """`facts` are sentences with what they are about; `front` and `compared` are left out where there are none.

    Seconds and bytes are worked out anew, so a plan edited by hand is shown as it stands.
    """
    estimate = estimate_plan(plan, request.model, request.cluster, request.latency)
    plan = replace(plan, estimate=estimate)
    timeline = rehearse(PlanCosts(plan, request.model, request.cluster, request.latency), plan)
    name = Path(str(plan.model["path"])).name
    parts = [_header(plan, estimate, name), _stages(plan, estimate), *_time(plan, estimate, boxes(timeline))]
    parts += [
        markup.section("What fills the memory", "A longer bar is a larger device.", charts.memory_bars(plan)),
        markup.section("The bits of every layer", "A column is a layer, a row its stage.", charts.bits_map(plan)),
    ]
    if front:
        parts.append(_front(front, ParetoPoint(plan)))
    if compared:
        rows = markup.table(comparison_rows(compared)) + markup.paragraphs(comparison_reasons(compared))
        parts.append(markup.section("Beside other planners", "With the same costs and the same judge.", rows))
    if plan.solver:
        parts.append(_proof(plan.solver, estimate, request.objective))
    if facts:
        parts.append(markup.section("What else is to be said", "", markup.sentences(facts)))
    return markup.document(f"Plan for {name}", parts)


def _header(plan: Plan, estimate: PlanEstimate, name: str) -> str:
    workload, quality, solver = plan.workload, plan.quality, plan.solver
    phases = f"{duration(estimate.prefill_s)} prefill, {duration(estimate.decode_s)} decode"
    tiles = [
        ("tokens per second", f"{estimate.tokens_per_s:.1f}", predicted(plan)),
        ("seconds per batch", f"{estimate.total_s:.2f}", phases),
        ("devices", f"{len(plan.stages)} of {len(plan.devices)}", stages_words(plan)),
    ]
    if quality:
        limit = quality.max_perplexity_increase
        allowed = f"predicted, at most +{limit:.1%}" if math.isfinite(limit) else "predicted, without a limit"
        tiles.append(("perplexity", increase_words(math.expm1(quality.predicted)), allowed))
    if solver:
        tiles.append(("proven gap", f"{solver.gap:.2%}", f"{solver.status} in {solver.seconds:.1f} s"))
    said = [
        f"{workload.batch_size} sequences at once, each with {workload.prompt_tokens} prompt tokens and "
        f"{workload.new_tokens} new ones."
    ]
    if any(device.is_emulated for device in plan.devices):
        said.append("Emulated: a cpu device is a process with a memory budget, a slowed one sleeps.")
    return f"<header><h1>Plan for {escape(name)}</h1>{markup.paragraphs(said)}{markup.tiles(tiles)}</header>"


def _stages(plan: Plan, estimate: PlanEstimate) -> str:
    rows = [("stage", "device", "decoder layers", "bits", "prefill", "decode")]
    for stage, seconds in enumerate(estimate.stage_seconds):
        layers = plan.decoder_range(stage)
        rows.append(
            (
                str(stage),
                device_words(plan.device_of(stage)),
                layers_words(plan, stage),
                run_lengths([plan.decoder_choices[layer] for layer in layers]),
                duration(seconds["prefill"]),
                duration(seconds["decode"]),
            )
        )
    unused = ", ".join(device_words(device) for device in charts.unused_devices(plan))
    says = "Stages in the order in which a token passes them, with the seconds of one micro-batch."
    return markup.section("The pipeline", says + (f" Left out: {unused}." if unused else ""), markup.table(rows))


def _time(plan: Plan, estimate: PlanEstimate, timeline: Sequence[Box]) -> list[str]:
    """The Gantt charts: the whole batch, the prefill, and some rounds of the decode."""
    whole = f"One batch, simulated instruction by instruction: {duration(estimate.total_s)} {predicted(plan)}."
    prefill = f"{_micro_batches(plan, plan.prefill_micro_batch_size)} of the prompts, a shade for each."
    decode = (
        f"{_micro_batches(plan, plan.decode_micro_batch_size)}, some rounds at the middle of the generation. A "
        "micro-batch starts its next token when its last one is back."
    )
    charts_s = estimate.prefill_s, estimate.decode_s
    parts = [
        markup.section("When each device works", whole, charts.whole_batch(plan, timeline, estimate.total_s)),
        markup.section("The prefill", prefill, charts.prefill(plan, timeline, estimate.prefill_s)),
    ]
    if estimate.decode_s:
        parts.append(markup.section("The decode", decode, charts.decode_rounds(plan, timeline, *charts_s)))
    return parts


def _front(front: Front, chosen: ParetoPoint) -> str:
    says = (
        "Plans of which no other is at least as good in speed, quality and number of devices. Less than +0.01% stands "
        "at the left edge, more than +1000% at the right. "
        f"Shown: {front.sentence}."
    )
    rows = [("tokens/s", "perplexity", "gap", "devices", "stages")]
    for point in front.points:
        speed, perplexity = f"{point.tokens_per_s:.1f}", increase_words(point.perplexity_increase)
        rows.append((speed, perplexity, f"{point.gap:.2%}", str(point.num_devices), stages_words(point.plan)))
    content = f'<div class="pair"><div>{pareto_chart(front.points, chosen)}</div>{markup.table(rows)}</div>'
    return markup.section("Speed, quality, devices", says, content)


def _proof(solver: SolverReport, estimate: PlanEstimate, objective: Objective) -> str:
    least_s = solver.objective
    own_s = max(estimate.closed_form_s, least_s) if objective is Objective.RING else least_s  # others are not judged
    is_least = own_s <= least_s * (1 + SAME)
    rows = [("no plan takes less", solver.bound, "proven"), ("the least found", least_s, "decode-0")]
    rows += [("this plan", own_s, "decode-1")] * (not is_least)
    bars = [Lane(name, f"{s:.3f} s", [Piece(0, s / own_s, kind)], f"{name}: {s} s") for name, s, kind in rows]
    its_own = "has it" if is_least else f"has {own_s:.4f} s, and is faster as the schedules really run"
    apart = estimate.total_s / estimate.closed_form_s - 1
    is_done = solver.status == "optimal"
    told = [
        f"The least seconds of a batch in closed form that the planner found are {least_s:.4f} s; this plan {its_own}. "
        "No plan, over all orders and subsets of the devices, all cuts, bits and micro-batch sizes, takes less than "
        f"{solver.bound:.4f} s: that is proven. From there to the least found it is {solver.gap:.3%}.",
        f"{'The gap that was asked for was reached' if is_done else 'It ended'} after {solver.seconds:.1f} s "
        f"({solver.status}). Looked at: {solver.searched}.",
        f"{solver.name} solved the model of this plan's own order and micro-batch sizes: none of these takes less than "
        f"{solver.order_bound:.4f} s."
        if solver.order_bound
        else f"{solver.name} has no word on this plan's own order and micro-batch sizes.",
        f"All other figures here follow every micro-batch through every stage: {estimate.total_s:.4f} s, "
        f"{abs(apart):.2%} {'more' if apart > 0 else 'less'} than the closed form.",
    ]
    return markup.section("How sure this is", "", lanes(bars) + markup.paragraphs(told))


def _micro_batches(plan: Plan, size: int) -> str:
    count = num_micro_batches(plan.workload.batch_size, size)
    return f"{count} micro-batch{'es' * (count > 1)} of {size}"
