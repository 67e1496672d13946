"""What must hold of any request: more of anything is never slower, names mean nothing, and `check_plan` is right.

What breaks a plan is worked out here again, from `cost/memory.py` and the sensitivity's table, stage by stage.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_infer.bench.planner.tiny import EIGHT, END_LOSS, FOUR, LOSS, RandomLatency, random_request
from hetero_infer.cost import memory
from hetero_infer.planner.check import check_plan
from hetero_infer.planner.edits import with_choice, with_layer_moved, with_size
from hetero_infer.planner.problem import QUALITY_TOLERANCE
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.search import find_plan
from hetero_infer.spec import UNQUANTISED, Choice, Cluster, Device, InfeasibleError, InputError, Link, Phase, Plan
from hetero_infer.spec.plan import StagePlan

Draw = Callable[[st.SearchStrategy[Any]], Any]
Edit = Callable[[Draw, Plan, PlanRequest], Plan]
Loosen = Callable[[Draw, PlanRequest], PlanRequest]
SEEDS = st.integers(0, 59)
UNKNOWN = Choice(4, 96)
few = settings(deadline=None, derandomize=True, max_examples=20)
many = settings(deadline=None, derandomize=True, max_examples=1200)


def best_plan(request: PlanRequest) -> Plan | None:
    """None where there is provably none."""
    try:
        plan = find_plan(request, time_limit_s=60, gap=0)
    except InfeasibleError:
        return None
    assert plan.solver and plan.solver.status == "optimal"
    return plan


@cache
def of_seed(seed: int) -> Plan | None:
    return best_plan(random_request(seed))


def optimum_s(plan: Plan | None) -> float:
    return plan.solver.objective if plan and plan.solver else math.inf


@cache
def planned(seed: int) -> tuple[PlanRequest, Plan]:
    """The first request from the seed on that has a plan."""
    plan = of_seed(seed)
    return (random_request(seed), plan) if plan else planned(seed + 1)


def with_devices(request: PlanRequest, *devices: Device) -> PlanRequest:
    return replace(request, cluster=replace(request.cluster, devices=devices))


# More is never worse


def a_device_more(draw: Draw, request: PlanRequest) -> PlanRequest:
    like = draw(st.sampled_from(request.cluster.devices))
    factor = draw(st.floats(0.3, 2))
    device = replace(like, slot=9, host=draw(st.sampled_from("ab")), memory_bytes=int(like.memory_bytes * factor))
    return with_devices(request, *request.cluster.devices, device)


def more_memory(draw: Draw, request: PlanRequest) -> PlanRequest:
    devices = request.cluster.devices
    factors = draw(st.tuples(*[st.floats(1, 2)] * len(devices)))
    grown = zip(devices, factors, strict=True)
    return with_devices(request, *(replace(one, memory_bytes=math.ceil(one.memory_bytes * f)) for one, f in grown))


def faster_links(draw: Draw, request: PlanRequest) -> PlanRequest:
    def faster(link: Link) -> Link:
        return Link(link.alpha_s * draw(st.floats(0, 1)), link.bytes_per_s * draw(st.floats(1, 100)))

    cluster = request.cluster
    links = {pair: faster(link) for pair, link in cluster.links.items()}
    return replace(request, cluster=Cluster(cluster.devices, faster(cluster.default_link), links))


def a_looser_limit(draw: Draw, request: PlanRequest) -> PlanRequest:
    return replace(request, omega_limit=request.omega_limit * draw(st.floats(1, 4)))


def more_choices(draw: Draw, request: PlanRequest) -> PlanRequest:
    """One for the decoder layers, and 8 bits for the ends."""
    new = draw(st.sampled_from([choice for choice in LOSS if choice not in request.choices]))
    old, ends = request.sensitivity, tuple(END_LOSS)
    table = replace(
        old,
        choices=(*old.choices, new),
        omega=tuple((*row, LOSS[new] * draw(st.floats(0.2, 2))) for row in old.omega),
        embedding=END_LOSS | old.embedding,
        head=END_LOSS | old.head,
    )
    choices = (*request.choices, new)
    return replace(request, sensitivity=table, choices=choices, embedding_choices=ends, head_choices=ends)


@pytest.mark.parametrize("loosen", [a_device_more, more_memory, faster_links, a_looser_limit, more_choices])
def test_more_is_never_slower(loosen: Loosen) -> None:
    faster = 0

    @few
    @given(seed=SEEDS, data=st.data())
    def holds(seed: int, data: st.DataObject) -> None:
        nonlocal faster
        loosened = loosen(data.draw, random_request(seed))
        before_s, after_s = optimum_s(of_seed(seed)), optimum_s(best_plan(loosened))
        assert after_s <= before_s * (1 + 1e-9)
        faster += after_s < before_s

    holds()
    assert faster >= 3, "it is of use now and then"


# Names mean nothing


def with_twin(request: PlanRequest, of: int) -> PlanRequest:
    devices = request.cluster.devices
    return with_devices(request, *devices, replace(devices[of % len(devices)], slot=9))


@few
@given(seed=SEEDS, data=st.data())
def test_the_order_of_the_hostfile_means_nothing(seed: int, data: st.DataObject) -> None:
    request = with_twin(random_request(seed), seed)
    devices = data.draw(st.permutations(request.cluster.devices))
    found_s = optimum_s(best_plan(with_devices(request, *devices)))
    assert found_s == pytest.approx(optimum_s(best_plan(request)), rel=1e-9)


@few
@given(seed=SEEDS)
def test_of_identical_devices_either_will_do(seed: int) -> None:
    request = with_twin(random_request(seed), seed)
    *others, twin = request.cluster.devices
    one = seed % len(others)
    swapped = with_devices(request, *others[:one], twin, *others[one + 1 :], others[one])
    before, after = (best_plan(each) for each in (request, swapped))
    assert (before and decisions(before)) == (after and decisions(after))


def decisions(plan: Plan) -> list[object]:
    """All that is decided, without the names."""
    stages = [(replace(plan.device_of(j), slot=0), stage.layers) for j, stage in enumerate(plan.stages)]
    return [plan.prefill_micro_batch_size, plan.decode_micro_batch_size, *stages]


# The check


def stage_bytes(plan: Plan, request: PlanRequest) -> list[int]:
    found, last = [], len(plan.stages) - 1
    sizes = plan.prefill_micro_batch_size, plan.decode_micro_batch_size
    for j, stage in enumerate(plan.stages):
        layers, (device,) = list(stage.layers), [one for one in plan.devices if one.name == stage.device]
        ends = {"embedding": layers.pop(0) if j == 0 else None, "head": layers.pop() if j == last else None}
        used = memory.stage_memory(request.model, plan.workload, *sizes, layers, device.element_bytes, **ends)
        found.append(used.weights + used.kv_cache + used.workspace)
    return found


def obstacles(plan: Plan, request: PlanRequest) -> set[str]:
    """What keeps the plan from running, or from its quality limit."""
    found = set()
    table, workload, devices = request.sensitivity, plan.workload, {device.name: device for device in plan.devices}
    used = zip(plan.stages, stage_bytes(plan, request), strict=True)
    if any(num_bytes > devices[stage.device].memory_bytes for stage, num_bytes in used):
        found.add("memory")
    embedding, *decoders, head = [(devices[stage.device], choice) for stage in plan.stages for choice in stage.layers]
    assert isinstance(request.latency, RandomLatency)
    if any((device.type, choice) in request.latency.refused for device, choice in decoders):
        found.add("not measured")
    if workload.prompt_tokens + workload.new_tokens - 1 > request.model.max_position_embeddings:
        found.add("positions")
    columns = [dict(zip(table.choices, row, strict=True)) for row in table.omega]
    layers = list(zip([table.embedding, *columns, table.head], [embedding, *decoders, head], strict=True))
    if any(choice not in omega for omega, (_, choice) in layers):
        return found | {"no indicator"}
    loss = sum(omega[choice] for omega, (_, choice) in layers)
    assert plan.quality
    if loss > plan.quality.limit + QUALITY_TOLERANCE * max(max(row) for row in table.omega):
        found.add("quality")
    return found


WORDS = {
    "memory": "MiB and has",
    "not measured": "nothing was measured there",
    "positions": "positions",
    "no indicator": "the sensitivity table has no",
    "quality": "is over the limit",
}


def told(plan: Plan, request: PlanRequest) -> set[str]:
    """The same, as `check_plan` says it."""
    sentences = check_plan(plan, request.model, request.sensitivity, request.latency)
    found = {what for what, words in WORDS.items() for sentence in sentences if words in sentence}
    assert len(sentences) >= len(found) and all(any(w in s for w in WORDS.values()) for s in sentences)
    return found


@settings(few, max_examples=60)
@given(seed=SEEDS)
def test_what_is_planned_is_accepted(seed: int) -> None:
    request, plan = planned(seed)
    assert told(plan, request) == obstacles(plan, request) == set()


# A plan edited by a hand: each edit takes what it needs to know, and gives the plan back where it does not apply


def another_choice(draw: Draw, plan: Plan, _: PlanRequest) -> Plan:
    layer = draw(st.integers(0, len(plan.decoder_choices) - 1))
    return with_choice(plan, layer, draw(st.sampled_from([*LOSS, UNKNOWN])))


def another_end(draw: Draw, plan: Plan, _: PlanRequest) -> Plan:
    j, place = draw(st.sampled_from([(0, 0), (len(plan.stages) - 1, -1)]))
    layers = list(plan.stages[j].layers)
    layers[place] = draw(st.sampled_from([UNQUANTISED, EIGHT, FOUR]))
    return with_stages(plan, j, StagePlan(plan.stages[j].device, tuple(layers)))


def a_layer_moved(draw: Draw, plan: Plan, _: PlanRequest) -> Plan:
    last = len(plan.stages) - 1
    givers = [j for j, stage in enumerate(plan.stages) if plan.decoder_range(j) and len(stage.layers) > 1]
    borders = [(j, k) for j in givers for k in (j - 1, j + 1) if 0 <= k <= last]
    return with_layer_moved(plan, *draw(st.sampled_from(borders))) if borders else plan


def a_stage_split(draw: Draw, plan: Plan, _: PlanRequest) -> Plan:
    """Its last layers on a device that was idle."""
    idle = {device.name for device in plan.devices} - {stage.device for stage in plan.stages}
    long = [j for j, stage in enumerate(plan.stages) if len(stage.layers) > 1]
    if not idle or not long:
        return plan
    j, name = draw(st.sampled_from(long)), draw(st.sampled_from(sorted(idle)))
    stage = plan.stages[j]
    cut = draw(st.integers(1, len(stage.layers) - 1))
    return with_stages(plan, j, StagePlan(stage.device, stage.layers[:cut]), StagePlan(name, stage.layers[cut:]))


def other_devices(draw: Draw, plan: Plan, _: PlanRequest) -> Plan:
    names = draw(st.permutations([device.name for device in plan.devices]))
    stages = zip(names, plan.stages, strict=False)
    return replace(plan, stages=tuple(StagePlan(name, stage.layers) for name, stage in stages))


def another_size(draw: Draw, plan: Plan, _: PlanRequest) -> Plan:
    size = draw(st.integers(1, plan.workload.batch_size))
    return with_size(plan, draw(st.sampled_from(list(Phase))), size)


def other_memory(draw: Draw, plan: Plan, request: PlanRequest) -> Plan:
    """What its stages need to the byte, or a byte less for one."""
    needs = {stage.device: need for stage, need in zip(plan.stages, stage_bytes(plan, request), strict=True)}
    short = draw(st.sampled_from([*needs, None]))
    devices = (replace(d, memory_bytes=needs.get(d.name, d.memory_bytes) - (d.name == short)) for d in plan.devices)
    return replace(plan, devices=tuple(devices))


def another_limit(draw: Draw, plan: Plan, _: PlanRequest) -> Plan:
    assert plan.quality
    limit = plan.quality.predicted * draw(st.sampled_from([0.5, 0.999, 1.001, 2]))
    return replace(plan, quality=replace(plan.quality, limit=limit))


def longer_prompts(draw: Draw, plan: Plan, _: PlanRequest) -> Plan:
    factor = draw(st.sampled_from([2, 8, 400]))
    return replace(plan, workload=replace(plan.workload, prompt_tokens=plan.workload.prompt_tokens * factor))


EDITS = [
    another_choice,
    another_end,
    a_layer_moved,
    a_stage_split,
    other_devices,
    another_size,
    other_memory,
    another_limit,
    longer_prompts,
]


def with_stages(plan: Plan, j: int, *stages: StagePlan) -> Plan:
    """In place of stage `j`."""
    return replace(plan, stages=(*plan.stages[:j], *stages, *plan.stages[j + 1 :]))


def test_every_edit_that_breaks_a_constraint_is_refused_and_no_other() -> None:
    """Up to four edits, one after the other, so that the plans go far from where the planner left them."""
    seen: Counter[str] = Counter()

    @many
    @given(
        seed=SEEDS,
        refused=st.frozensets(st.tuples(st.sampled_from(["cpu", "t4"]), st.sampled_from(list(LOSS))), max_size=1),
        edits=st.lists(st.sampled_from(EDITS), min_size=1, max_size=4),
        data=st.data(),
    )
    def holds(seed: int, refused: frozenset[tuple[str, Choice]], edits: list[Edit], data: st.DataObject) -> None:
        request, plan = planned(seed)
        request = replace(request, latency=replace(request.latency, refused=refused))
        for edit in edits:
            plan = edit(data.draw, plan, request)
        found = obstacles(plan, request)
        assert told(plan, request) == found
        seen.update(found or {"nothing"})
        if found == {"memory"} and edits[-1] is another_size:
            seen["workspace"] += 1

    holds()
    assert seen.keys() == {"nothing", "workspace", *WORDS} and min(seen.values()) >= 4, seen


STAGES: dict[str, Callable[[StagePlan], list[StagePlan]]] = {  # what stands in place of a stage
    "two stages on a device": lambda s: [replace(s, layers=s.layers[:1]), replace(s, layers=s.layers[1:])],
    "a layer dropped": lambda s: [replace(s, layers=s.layers[1:])],
    "a layer twice": lambda s: [replace(s, layers=(*s.layers, s.layers[-1]))],
    "a stage dropped": lambda s: [],
    "a stage twice": lambda s: [s, s],
    "a stage without layers": lambda s: [s, replace(s, layers=())],
    "a device of nobody": lambda s: [replace(s, device="elsewhere:0")],
}


@pytest.mark.parametrize("what", STAGES)
@settings(few, max_examples=60)
@given(seed=SEEDS, data=st.data())
def test_stages_that_make_no_pipeline_are_no_plan(what: str, seed: int, data: st.DataObject) -> None:
    _, plan = planned(seed)
    j = data.draw(st.integers(0, len(plan.stages) - 1))
    with pytest.raises(InputError):
        with_stages(plan, j, *STAGES[what](plan.stages[j]))


@settings(few, max_examples=60)
@given(seed=SEEDS, data=st.data(), phase=st.sampled_from(list(Phase)))
def test_a_size_out_of_range_or_a_device_twice_is_no_plan(seed: int, data: st.DataObject, phase: Phase) -> None:
    _, plan = planned(seed)
    size = data.draw(st.integers(max_value=0) | st.integers(min_value=plan.workload.batch_size + 1) | st.floats(1, 2))
    with pytest.raises(InputError, match="micro_batch_size"):
        with_size(plan, phase, size)
    with pytest.raises(InputError, match="twice"):
        replace(plan, devices=(*plan.devices, data.draw(st.sampled_from(plan.devices))))
