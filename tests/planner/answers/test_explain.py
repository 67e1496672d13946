"""What an explanation claims is so: each change it speaks of is made here by hand and looked at again."""

import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pytest

from hetero_infer.bench.planner.tiny import EIGHT, FOUR, THREE, PlanRequest, random_request
from hetero_infer.cost.latency import LayerKind, Source
from hetero_infer.cost.memory import decoder_layer_bytes, kv_cache_bytes, plan_memory, with_margin
from hetero_infer.cost.timeline import recurrence
from hetero_infer.pipeline.instructions import DecodeForward, PrefillForward
from hetero_infer.pipeline.rehearsal import rehearse
from hetero_infer.planner.answers.changes import Change
from hetero_infer.planner.answers.explain import Explanation, explain
from hetero_infer.planner.check import check_plan
from hetero_infer.planner.estimate import PlanCosts, estimate_plan
from hetero_infer.spec import (
    UNQUANTISED,
    Choice,
    Cluster,
    Device,
    Link,
    Phase,
    Plan,
    QualityPlan,
    SensitivityTable,
    StagePlan,
    Workload,
)
from tests.llama import llama_spec
from tests.planner.all_devices import plan_with_all

MIB = 2**20
ROOMY = 64 * MIB
MODEL = llama_spec(vocab_size=2048, hidden_size=256, intermediate_size=512)
FAST, SLOW = Link(1e-6, 1e12), Link(1.0, 1e12)
OMEGA = ((0.04, 0.01, 0.001), (0.03, 0.02, 0.002), (0.05, 0.03, 0.001), (0.06, 0.02, 0.001))


@dataclass(frozen=True)
class FlatLatency:
    """10 ms for every decoder layer at 4 bits, in either phase and for any micro-batch; the ends take nothing."""

    per_bit_s: float = 0.0

    def allowed_choices(
        self, device: Device, choices: Iterable[Choice], kind: LayerKind = "decoder"
    ) -> tuple[Choice, ...]:
        return tuple(choices)

    def layer_seconds(
        self, device: Device, kind: str, choice: Choice, phase: Phase, batch: int, input_tokens: int, past_tokens: int
    ) -> float:
        seconds = 0.01 + self.per_bit_s * (choice.bits - 4)
        return seconds * device.slowdown if kind == "decoder" else 0.0

    def source(self, device: Device) -> Source:
        return Source("made up")


def request_of(links: Mapping[tuple[str, str], Link] | None = None, workload: Workload | None = None) -> PlanRequest:
    """Four layers, 3, 4 or 8 bits, two roomy devices on two hosts."""
    return PlanRequest(
        model=MODEL,
        model_facts={"path": "tiny", "digest": "0", "num_hidden_layers": 4},
        cluster=Cluster((Device("a", 0, "cpu", ROOMY), Device("b", 0, "cpu", ROOMY)), FAST, links or {}),
        workload=workload or Workload(4, 16, 5),
        latency=FlatLatency(),
        sensitivity=SensitivityTable("by hand", "0", "0", "nats per token", (THREE, FOUR, EIGHT), OMEGA),
        choices=(THREE, FOUR, EIGHT),
        omega_limit=math.log1p(0.5),
        max_perplexity_increase=0.5,
    )


def plan_of(request: PlanRequest, choices: tuple[tuple[Choice, ...], ...] = ((FOUR,) * 2, (FOUR,) * 2)) -> Plan:
    """By hand: the stages, micro-batches of one, and the request's limit."""
    last = len(choices) - 1
    return Plan(
        model=request.model_facts,
        devices=request.cluster.devices,
        workload=request.workload,
        stages=tuple(
            StagePlan(device.name, (UNQUANTISED,) * (j == 0) + layers + (UNQUANTISED,) * (j == last))
            for j, (device, layers) in enumerate(zip(request.cluster.devices, choices, strict=True))
        ),
        prefill_micro_batch_size=1,
        decode_micro_batch_size=1,
        quality=QualityPlan(request.max_perplexity_increase, request.omega_limit, 0.0, "nats per token"),
    )


def used_bytes(plan: Plan, request: PlanRequest, stage: int) -> int:
    return plan_memory(request.model, plan)[stage].total


def with_memory(plan: Plan, budgets: Mapping[str, int]) -> Plan:
    return replace(
        plan,
        devices=tuple(
            replace(device, memory_bytes=budgets.get(device.name, device.memory_bytes)) for device in plan.devices
        ),
    )


def applied(plan: Plan, change: Change) -> Plan:
    """The layer at its new choice, on its new device: all layers written out and dealt out again."""
    here = [plan.stages[stage].device for stage in range(len(plan.stages)) for _ in plan.decoder_range(stage)]
    choices = list(plan.decoder_choices)
    here[change.layer], choices[change.layer] = change.device, change.choice
    last = len(plan.stages) - 1
    return replace(
        plan,
        stages=tuple(
            StagePlan(
                stage.device,
                (UNQUANTISED,) * (j == 0)
                + tuple(c for device, c in zip(here, choices, strict=True) if device == stage.device)
                + (UNQUANTISED,) * (j == last),
            )
            for j, stage in enumerate(plan.stages)
        ),
    )


def total_s(plan: Plan, request: PlanRequest) -> float:
    return estimate_plan(plan, request.model, request.cluster, request.latency).total_s


NO_CHANGE = Change("", 0, FOUR, 0, 0, 0.0, 0.0, 0.0, 0.0)


def sentences(explanation: Explanation, about: str) -> list[str]:
    return [says for topic, says in explanation.sentences if topic == about]


def test_a_device_without_a_byte_to_spare_binds_and_names_what_the_next_mib_would_do() -> None:
    request = request_of()
    plan = plan_of(request)
    plan = with_memory(plan, {"a:0": used_bytes(plan, request, 0)})
    explanation = explain(plan, request)
    first, second = explanation.memory
    assert (first.free_bytes, first.binds, second.binds) == (0, True, False)
    assert sentences(explanation, "binding") == ["the memory of a:0; there is room that would help on b:0"]

    more_bits = with_margin(decoder_layer_bytes(MODEL, EIGHT, 4) - decoder_layer_bytes(MODEL, FOUR, 4))
    one_layer = with_margin(decoder_layer_bytes(MODEL, FOUR, 4) + kv_cache_bytes(MODEL, request.workload, 4))
    assert first.more_bits and first.one_more_layer
    assert (first.more_bits.layer, first.one_more_layer.layer) == (1, 2)  # 0.018 less, layer 0 only 0.009
    assert first.more_bits.missing_bytes == pytest.approx(more_bits, abs=1)  # margins are rounded up
    assert first.one_more_layer.missing_bytes == pytest.approx(one_layer, abs=1)

    said = re.fullmatch(
        r"a:0 is full: (\d\.\d) MiB more would let layer 1 take 8 bits \(quality loss 0\.062, the same "
        r"time\); (\d\.\d) MiB more would let layer 2 move here \((.*)% more time\)",
        first.sentence,
    )
    assert said, first.sentence
    for amount, change in zip(said.groups()[:2], first.changes, strict=True):
        budget = used_bytes(plan, request, 0) + round(float(amount) * MIB)
        assert check_plan(applied(with_memory(plan, {"a:0": budget}), change), MODEL, request.sensitivity) == []
        assert check_plan(applied(plan, change), MODEL, request.sensitivity) != []
    slower = total_s(applied(plan, first.one_more_layer), request) / total_s(plan, request) - 1
    assert f"{slower:.1%}" == said.group(3) + "%"


def test_a_used_up_allowance_binds_and_the_increase_it_names_is_enough() -> None:
    request = replace(request_of(), latency=FlatLatency(per_bit_s=1e-3))  # fewer bits are faster
    plan = plan_of(request)
    plan = replace(plan, quality=QualityPlan(0.09, 0.0801, 0.0, "nats per token"))  # 0.01 + 0.02 + 0.03 + 0.02 used
    explanation = explain(plan, request)
    assert explanation.binding == ("the quality limit",)
    change = explanation.quality.fewer_bits
    assert explanation.quality.binds and change and (change.layer, change.choice) == (1, THREE)
    assert change.omega == pytest.approx(0.09) and change.total_s < total_s(plan, request)

    said = re.search(
        r"max_perplexity_increase = (0\.\d{4}) would let layer 1 take 3 bits", explanation.quality.sentence
    )
    assert said, explanation.quality.sentence
    raised = QualityPlan(float(said.group(1)), math.log1p(float(said.group(1))), 0.0, "nats per token")
    assert check_plan(applied(replace(plan, quality=raised), change), MODEL, request.sensitivity) == []
    assert "over the limit" in check_plan(applied(plan, change), MODEL, request.sensitivity)[0]
    assert change.freed_bytes == used_bytes(plan, request, 0) - used_bytes(applied(plan, change), request, 0) > 0


def test_an_allowance_that_would_free_a_full_device_binds_too() -> None:
    request = request_of()
    plan = plan_of(request)
    plan = with_memory(plan, {"b:0": used_bytes(plan, request, 1)})
    plan = replace(plan, quality=QualityPlan(0.09, 0.0801, 0.0, "nats per token"))
    explanation = explain(plan, request)
    assert explanation.binding == ("the memory of b:0", "the quality limit")
    change = explanation.quality.fewer_bits
    assert change and (change.device, change.layer, change.choice) == ("b:0", 2, THREE)  # 0.02 more, layer 3 0.04


def test_nothing_binds_where_there_is_room_for_all() -> None:
    request = request_of()
    plan = plan_of(request, ((EIGHT,) * 2, (EIGHT,) * 2))
    explanation = explain(plan, request)
    assert sentences(explanation, "binding") == ["neither memory nor quality"]
    assert all("there is room to let layer" in says for says in sentences(explanation, "memory"))  # no use of it
    assert not explanation.quality.binds and "would not help anywhere" in explanation.quality.sentence


def test_room_that_would_help_is_pointed_at_and_helps() -> None:
    request = request_of()
    plan = plan_of(request)
    explanation = explain(plan, request)
    assert explanation.binding == () and "room that would help on a:0, b:0" in sentences(explanation, "binding")[0]
    for finding in explanation.memory:
        change = finding.more_bits
        assert change and change.fits and change.added_omega < 0
        assert check_plan(applied(plan, change), MODEL, request.sensitivity) == []
        assert total_s(applied(plan, change), request) <= total_s(plan, request)


def test_an_allowance_that_is_left_says_what_it_could_buy() -> None:
    request = replace(request_of(), latency=FlatLatency(per_bit_s=1e-3))
    plan = plan_of(request)
    finding = explain(plan, request).quality
    change = finding.fewer_bits
    assert (
        not finding.binds and change and "does not bind, there is room to let layer 1 take 3 bits" in finding.sentence
    )
    assert check_plan(applied(plan, change), MODEL, request.sensitivity) == []


def test_the_best_bits_everywhere_leave_nothing_to_want() -> None:
    request = replace(request_of(), choices=(EIGHT,))
    one = replace(request.cluster, devices=request.cluster.devices[:1])
    plan = plan_of(replace(request, cluster=one), ((EIGHT,) * 4,))
    explanation = explain(plan, request)
    (finding,) = explanation.memory
    assert not finding.binds and finding.sentence.endswith("no layer here or next to it could use more")
    assert not explanation.quality.binds and "fewer bits would not help" in explanation.quality.sentence
    assert finding.idle_share == pytest.approx(0) and "could give it a layer" in sentences(explanation, "idle")[0]
    assert sentences(explanation, "uniform") == ["an even split at 8 bits would take 0.25x as long"], "of all devices"


def test_a_stage_with_nothing_but_the_embedding_idles_and_is_offered_the_first_layer() -> None:
    request = request_of()
    plan = plan_of(request, ((), (FOUR,) * 4))
    explanation = explain(plan, request)
    first, second = explanation.memory
    change = first.one_more_layer
    assert first.more_bits is None and first.idle_share == 1 and second.one_more_layer is None
    assert change and (change.layer, change.choice) == (0, FOUR) and change.helps and change.fits
    assert change.total_s == pytest.approx(total_s(applied(plan, change), request))
    assert sentences(explanation, "idle")[0].startswith("a:0 idles most, 100% of the batch; layer 0 there would mean ")


def test_a_plan_without_a_limit_is_told_that_it_states_none() -> None:
    request = request_of()
    for quality in (None, QualityPlan(math.inf, math.inf, 0.0, "nats per token")):
        finding = explain(replace(plan_of(request), quality=quality), request).quality
        assert not finding.binds and finding.limit is None and "states no limit" in finding.sentence


@pytest.mark.parametrize(
    ("links", "slowdown", "slowest"),
    [
        ({}, 1.0, "stage 0 on a:0"),
        ({}, 3.0, "stage 1 on b:0"),
        ({("a", "b"): SLOW}, 3.0, "the link from a:0 to b:0"),
        ({("b", "a"): SLOW}, 3.0, "the return of the tokens from b:0 to a:0"),
    ],
)
def test_the_slowest_station_sets_the_pace_of_many_micro_batches(
    links: dict[tuple[str, str], Link], slowdown: float, slowest: str
) -> None:
    request = request_of(links)
    plan = plan_of(request)
    plan = replace(plan, devices=(plan.devices[0], replace(plan.devices[1], slowdown=slowdown)))
    for finding in explain(plan, request).pace:
        assert (finding.slowest, finding.pace, finding.micro_batches) == (slowest, "slowest station", 4)
        assert finding.sentence.startswith(f"{slowest} sets the pace, 4 micro-batches × ")


@pytest.mark.parametrize("links", [{}, {("b", "a"): SLOW}])
def test_one_micro_batch_in_flight_waits_for_its_own_token(links: dict[tuple[str, str], Link]) -> None:
    request = request_of(links)
    plan = replace(plan_of(request), decode_micro_batch_size=4)
    explanation = explain(plan, request)
    prefill, decode = explanation.pace
    assert (prefill.pace, decode.pace) == ("slowest station", "way round")
    assert decode.sentence.startswith("a token's way round sets the pace, ")
    assert decode.pass_s == pytest.approx(0.04 + bool(links), abs=1e-4)
    assert decode.micro_batches * decode.slowest_s < decode.pass_s


def test_other_micro_batches_are_proposed_where_they_fit_and_are_faster() -> None:
    request = request_of(workload=Workload(4, 1, 5))  # a micro-batch takes the same seconds at any size
    plan = plan_of(request)
    explanation = explain(plan, request)
    change = explanation.best_size
    assert change and (change.phase, change.micro_batch_size) == (Phase.DECODE, 2)  # one for each stage
    assert change.total_s == pytest.approx(total_s(replace(plan, decode_micro_batch_size=2), request))
    (says,) = sentences(explanation, "micro-batch")
    assert says.startswith("decode in micro-batches of 2 would fit") and f"{-change.slower:.1%} less time" in says

    full = explain(with_memory(plan, {"b:0": used_bytes(plan, request, 1)}), request)
    assert full.best_size is None  # more rows at once: b:0 lacks the memory for any larger size
    best = explain(replace(plan, prefill_micro_batch_size=2, decode_micro_batch_size=2), request)
    assert best.best_size and best.best_size.slower > 0
    for explanation in (full, best):
        assert sentences(explanation, "micro-batch")[0].startswith("no other size")


def test_relief_of_a_link_is_what_a_quicker_link_gives() -> None:
    workload = Workload(4, 16, 1)  # no decode: the link is asked in one phase
    request, quicker = (request_of({("a", "b"): Link(seconds, 2.0**50)}, workload) for seconds in (1.0, 0.9))
    plan = plan_of(request)
    explanation = explain(plan, request)
    prefill, decode = explanation.pace
    assert prefill.relief == pytest.approx(total_s(plan, quicker) / total_s(plan, request) - 1)
    assert decode.sentence == "none: the prefill gives the only token"


def test_the_figures_in_the_file_are_not_believed() -> None:
    request = request_of()
    plan = plan_of(request)
    honest = estimate_plan(plan, request.model, request.cluster, request.latency)
    lies = replace(honest, prefill_s=1e9, decode_s=1e9, memory_bytes=({}, {}), stage_seconds=({}, {}))
    limit = QualityPlan(0.5, request.omega_limit, predicted=123.0, unit="nats per token")
    assert explain(replace(plan, estimate=lies, quality=limit), request) == explain(plan, request)
    assert explain(plan, request).prefill_s == honest.prefill_s


def found_plans() -> list[tuple[Plan, PlanRequest]]:
    found = []
    for seed in range(60):
        request = random_request(seed)
        if seed % 4 and (plan := plan_with_all(request)):
            found.append((plan, request))
    return found


@pytest.fixture(scope="module")
def explained() -> list[tuple[Plan, PlanRequest, Explanation]]:
    return [(plan, request, explain(plan, request)) for plan, request in found_plans()]


def test_every_change_needs_what_it_says_and_takes_as_long(
    explained: list[tuple[Plan, PlanRequest, Explanation]],
) -> None:
    fitting = missing = 0
    for plan, request, explanation in explained:
        for stage, finding in enumerate(explanation.memory):
            assert finding.free_bytes == plan.devices[stage].memory_bytes - used_bytes(plan, request, stage)
            for change in finding.changes:
                changed = applied(plan, change)
                enough = finding.memory_bytes + change.missing_bytes
                assert used_bytes(changed, request, stage) == enough
                assert change.total_s == pytest.approx(total_s(changed, request))
                assert change.slower == pytest.approx(change.total_s / total_s(plan, request) - 1)
                loss = sum(request.sensitivity.of(layer, c) for layer, c in enumerate(changed.decoder_choices))
                assert change.omega == pytest.approx(loss)
                fitting, missing = fitting + change.fits, missing + (not change.fits)
                worth = change.slower < -5e-4 or (change.slower < 5e-4 and loss < explanation.quality.used - 1e-12)
                assert change.helps == worth
            assert finding.binds == any(c.helps and c.missing_bytes > 0 for c in finding.changes)
    assert min(fitting, missing) >= 10


def test_where_memory_does_not_bind_no_better_bits_would_help(
    explained: list[tuple[Plan, PlanRequest, Explanation]],
) -> None:
    no_room = 0
    for plan, request, explanation in explained:
        now_s = total_s(plan, request)
        for stage, finding in enumerate(explanation.memory):
            device = plan.devices[stage]
            for layer in plan.decoder_range(stage) if not finding.binds else ():
                loss = request.sensitivity.of(layer, plan.decoder_choices[layer])
                better = [
                    choice
                    for choice in request.latency.allowed_choices(device, request.choices)
                    if request.sensitivity.of(layer, choice) < loss
                ]
                for choice in sorted(better)[:1]:
                    changed = applied(plan, replace(NO_CHANGE, device=device.name, layer=layer, choice=choice))
                    fits = used_bytes(changed, request, stage) <= device.memory_bytes
                    assert fits or finding.has_use or total_s(changed, request) > now_s * (1 + 4e-4)
                    no_room += not fits
    assert no_room >= 5


def test_idle_shares_are_those_of_the_dry_run(explained: list[tuple[Plan, PlanRequest, Explanation]]) -> None:
    rng = random.Random(0)
    overlapping = 0
    for plan, request, _ in explained:
        sizes = plan.workload.micro_batch_sizes
        plan = replace(plan, prefill_micro_batch_size=rng.choice(sizes), decode_micro_batch_size=rng.choice(sizes))
        costs = PlanCosts(plan, request.model, request.cluster, request.latency)
        timeline = rehearse(costs, plan)
        compute = [event for event in timeline.events if isinstance(event.instruction, PrefillForward | DecodeForward)]
        border_s = recurrence(
            costs, plan.workload, plan.prefill_micro_batch_size, plan.decode_micro_batch_size
        ).prefill_s
        overlapping += any(e.instruction.phase is Phase.DECODE and e.start_s < border_s * (1 - 1e-9) for e in compute)
        for stage, finding in enumerate(explain(plan, request).memory):
            mine = [event for event in compute if event.stage == stage]
            busy_s = sum(event.end_s - event.start_s for event in mine)
            assert finding.idle_share == pytest.approx(1 - busy_s / timeline.makespan_s, abs=1e-9)
            early_s = sum(max(0.0, min(event.end_s, border_s) - event.start_s) for event in mine)
            assert finding.phase_idle_share[Phase.PREFILL] == pytest.approx(1 - early_s / border_s, abs=1e-9)
            late_s = timeline.makespan_s - border_s
            if plan.workload.new_tokens > 1:
                share = 1 - (busy_s - early_s) / late_s
                assert finding.phase_idle_share[Phase.DECODE] == pytest.approx(share, abs=1e-9)
    assert overlapping >= 3
