"""What a plan promises, from the plan and the latency model alone: another path than the MILP's coefficients."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property

from hetero_infer.cost.comm import activation_message_bytes, token_message_bytes
from hetero_infer.cost.latency import LatencyModel, LayerKind
from hetero_infer.cost.memory import plan_memory
from hetero_infer.cost.timeline import (
    PhaseCosts,
    Stations,
    decode_seconds,
    prefill_seconds,
    recurrence,
    station_seconds,
)
from hetero_infer.planner.problem import middle_past_tokens
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.cluster import Cluster, Device
from hetero_infer.spec.model import ModelSpec
from hetero_infer.spec.plan import LayerFit, Plan, PlanEstimate, num_micro_batches
from hetero_infer.spec.workload import KV_BLOCK_TOKENS, Phase, round_up_to_block


@dataclass(frozen=True)
class PlanCosts:
    """`StationCosts` of a plan: seconds at each station for any micro-batch. The links are the cluster's."""

    plan: Plan
    model: ModelSpec
    cluster: Cluster
    latency: LatencyModel

    @property
    def num_stages(self) -> int:
        return len(self.plan.stages)

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        return tuple(self.plan.device_of(stage) for stage in range(self.num_stages))

    @cached_property
    def _layers(self) -> tuple[Counter[tuple[LayerKind, Choice]], ...]:
        decoders: list[LayerKind] = ["decoder"] * self.model.num_hidden_layers
        kinds: list[LayerKind] = ["embedding", *decoders, "head"]
        layers = list(zip(kinds, self.plan.layer_choices, strict=True))
        return tuple(Counter(layers[start:stop]) for start, stop in itertools.pairwise(self.plan.bounds))

    def compute_s(self, stage: int, phase: Phase, batch: int, past_tokens: int) -> float:
        device = self.devices[stage]
        input_tokens = self.plan.workload.prompt_tokens if phase is Phase.PREFILL else 1
        return sum(
            count * self.latency.layer_seconds(device, kind, choice, phase, batch, input_tokens, past_tokens)
            for (kind, choice), count in self._layers[stage].items()
        )

    def send_s(self, stage: int, phase: Phase, batch: int) -> float:
        source, target = self.devices[stage : stage + 2]
        tokens = batch * (self.plan.workload.prompt_tokens if phase is Phase.PREFILL else 1)
        num_bytes = activation_message_bytes(phase, batch, tokens, self.model.hidden_size, source.element_bytes)
        return self.cluster.link(source, target).seconds(num_bytes)

    def return_s(self, phase: Phase, batch: int) -> float:
        if self.num_stages == 1:
            return 0.0
        return self.cluster.link(self.devices[-1], self.devices[0]).seconds(token_message_bytes(batch))

    def fits(self) -> Iterator[LayerFit]:
        """Of what the stages hold, as far as it was measured: once for each device type."""
        by_type: dict[str, set[tuple[str, Choice]]] = defaultdict(set)
        for device, layers in zip(self.devices, self._layers, strict=True):
            by_type[device.timed_as] |= layers.keys()
        for name, device in {device.timed_as: device for device in self.devices}.items():
            for (kind, choice, phase), fit in self.latency.source(device).fits.items():
                if (kind, choice) in by_type[name]:
                    mean = fit.holdout.mean if fit.holdout else None
                    yield LayerFit(name, kind, str(choice), phase.value, fit.method, mean)

    def of_phase(self, phase: Phase) -> PhaseCosts:
        """One full micro-batch at every station, decode at the middle of the generation."""
        plan, stages = self.plan, range(self.num_stages)
        is_prefill = phase is Phase.PREFILL
        size = plan.prefill_micro_batch_size if is_prefill else plan.decode_micro_batch_size
        past_tokens = 0 if is_prefill else middle_past_tokens(plan.workload)
        return PhaseCosts(
            tuple(self.compute_s(stage, phase, size, past_tokens) for stage in stages),
            tuple(self.send_s(stage, phase, size) for stage in stages[:-1]),
            self.return_s(phase, size),
            num_micro_batches(plan.workload.batch_size, size),
        )

    @property
    def closed_form_s(self) -> float:
        """Of the whole batch."""
        prefill, decode = (self.of_phase(phase) for phase in Phase)
        return prefill_seconds(prefill) + decode_seconds(decode, self.plan.workload.new_tokens)


def stations_of(costs: PlanCosts) -> Stations:
    """For requests of any lengths. Pasts are taken at the middle of their block, over which attention runs whole."""

    @cache
    def with_prompts(prompt_tokens: int) -> PlanCosts:
        workload = replace(costs.plan.workload, prompt_tokens=prompt_tokens)
        return replace(costs, plan=replace(costs.plan, workload=workload))

    @cache
    def decode(sequences: int, past_tokens: int) -> list[float]:
        return station_seconds(costs, Phase.DECODE, sequences, past_tokens)

    @cache
    def empty() -> list[float]:
        seconds = station_seconds(costs, Phase.DECODE, 1, 0)
        seconds[:-1:2] = [0.0] * costs.num_stages  # no stage computes, and the wires carry as little as a token
        return seconds

    def stations(phase: Phase, sequences: int, tokens: int) -> list[float]:
        if phase is Phase.PREFILL:
            return station_seconds(with_prompts(tokens), phase, sequences, 0)
        block = round_up_to_block(tokens + 1)
        return decode(sequences, block - KV_BLOCK_TOKENS // 2) if sequences else empty()

    return stations


def estimate_plan(plan: Plan, model: ModelSpec, cluster: Cluster, latency: LatencyModel) -> PlanEstimate:
    """Seconds by the recurrence and by the closed form, bytes per stage: for any plan, also a hand-made one."""
    costs = PlanCosts(plan, model, cluster, latency)
    workload = plan.workload
    makespan = recurrence(costs, workload, plan.prefill_micro_batch_size, plan.decode_micro_batch_size)
    phases = {phase: costs.of_phase(phase) for phase in Phase}
    sources = {device.timed_as: latency.source(device) for device in costs.devices}
    return PlanEstimate(
        prefill_s=makespan.prefill_s,
        decode_s=makespan.decode_s,
        tokens_per_s=workload.batch_size * workload.new_tokens / makespan.total_s,
        closed_form_s=costs.closed_form_s,
        stage_seconds=tuple(
            {phase.value: phases[phase].compute_s[stage] for phase in Phase} for stage in range(costs.num_stages)
        ),
        memory_bytes=tuple(asdict(memory) for memory in plan_memory(model, plan)),
        source={name: source.word for name, source in sources.items()},
        holdout_mean={name: source.holdout.mean for name, source in sources.items() if source.holdout},
        fits=tuple(costs.fits()),
    )
