"""Why a plan is as it is: which limit binds, what each device idles, and what would have to change for more.

In: any plan that `check_plan` passes, also one edited by hand, and the request it is judged with. All is worked out
from the stages and micro-batches; the plan's own `estimate` is not read. Out: findings, each with its sentence.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from hetero_infer.cost.timeline import PhaseCosts, recurrence
from hetero_infer.planner.answers.changes import NOTICEABLE, Change, PlanChanges, SizeChange
from hetero_infer.planner.baselines.uniform import bits_words, why_not_uniform
from hetero_infer.planner.check import MIB, missing_mib
from hetero_infer.planner.estimate import PlanCosts, estimate_plan
from hetero_infer.planner.problem import QUALITY_TOLERANCE
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.plan import Plan
from hetero_infer.spec.workload import Phase

RELIEF = 0.1  # the share of its time that a station is imagined to save


@dataclass(frozen=True)
class MemoryFinding:
    """A device's free bytes, and the cheapest uses of more: better bits for a layer there, one more layer.

    `idle_share` is of the whole batch, `phase_idle_share` of each phase's time.
    """

    device: str
    memory_bytes: int
    free_bytes: int
    more_bits: Change | None
    one_more_layer: Change | None
    idle_share: float
    phase_idle_share: Mapping[Phase, float]

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(change for change in (self.more_bits, self.one_more_layer) if change)

    @property
    def binds(self) -> bool:
        """Whether more memory here would help."""
        return any(change.helps and not change.fits for change in self.changes)

    @property
    def has_use(self) -> bool:
        """Whether the memory that is free here would help."""
        return any(change.helps and change.fits for change in self.changes)

    @property
    def sentence(self) -> str:
        free = f"{math.floor(self.free_bytes / MIB * 10) / 10:.1f} MiB"
        told = "; ".join(self._told(change) for change in self.changes)
        if not told:
            return f"{self.device} has {free} free, and no layer here or next to it could use more"
        return f"{self.device} is full: {told}" if free == "0.0 MiB" else f"{self.device} has {free} free: {told}"

    def _told(self, change: Change) -> str:
        if change is self.more_bits:
            what = f"layer {change.layer} take {bits_words(change.choice)}"
            effect = f"quality loss {change.omega:.3g}, {_time_words(change.slower)}"
        else:
            what = f"layer {change.layer} move here"
            effect = _time_words(change.slower)
        if change.fits:
            return f"there is room to let {what} ({effect})"
        return f"{missing_mib(change.missing_bytes)} more would let {what} ({effect})"


@dataclass(frozen=True)
class QualityFinding:
    """Σω beside its limit (None: the plan states none), and the change that would use least of what is left."""

    used: float
    limit: float | None
    tolerance: float
    unit: str
    fewer_bits: Change | None

    @property
    def binds(self) -> bool:
        """Whether fewer bits of a layer would help, if it were not for the limit."""
        if self.limit is None or self.fewer_bits is None:
            return False
        return self.fewer_bits.omega > self.limit + self.tolerance

    @property
    def sentence(self) -> str:
        if self.limit is None:
            return f"the plan states no limit; the quality loss is {self.used:.3g} {self.unit}"
        state = f"{self.used:.3g} of {self.limit:.3g} {self.unit} are used, {self.used / (self.limit or 1):.0%}"
        if self.fewer_bits is None:
            return f"{state}: fewer bits would not help anywhere, the limit does not bind"
        change = self.fewer_bits
        freed = missing_mib(abs(change.freed_bytes))
        effect = (
            f"layer {change.layer} take {bits_words(change.choice)} (quality loss {change.omega:.3g}, "
            f"{freed} {'less' if change.freed_bytes > 0 else 'more'} on {change.device}, "
            f"{_time_words(change.slower)})"
        )
        if not self.binds:
            return f"{state}: the limit does not bind, there is room to let {effect}"
        needed = math.ceil(math.expm1(change.omega) * 1e4) / 1e4
        return f"{state}: the limit binds, max_perplexity_increase = {needed:.4f} would let {effect}"


@dataclass(frozen=True)
class PaceFinding:
    """What sets the pace of a phase, in seconds of one full micro-batch (decode: at the middle of the generation).

    `slowest` is the slowest station, `pass_s` one micro-batch once round the ring. `relief` is the share of time that
    the whole batch would take more if the slowest station took a tenth less in this phase: 0 or negative.
    """

    phase: Phase
    seconds: float
    micro_batches: int
    slowest: str
    slowest_s: float
    pass_s: float
    relief: float

    @property
    def pace(self) -> Literal["slowest station", "way round"]:
        """The busiest station is never idle, or each micro-batch waits for itself to come round."""
        return "slowest station" if self.micro_batches * self.slowest_s >= self.pass_s else "way round"

    @property
    def sentence(self) -> str:
        if not self.seconds:
            return "none: the prefill gives the only token"
        times = "1 micro-batch" if self.micro_batches == 1 else f"{self.micro_batches} micro-batches"
        busy = f"{times} × {_ms(self.slowest_s)} = {_ms(self.micro_batches * self.slowest_s)}"
        way = "a token's way round" if self.phase is Phase.DECODE else "the way of one micro-batch through all stages"
        relief = f"{RELIEF:.0%} off its seconds would mean {_time_words(self.relief)}"
        if self.pace == "slowest station":
            return f"{self.slowest} sets the pace, {busy}, while {way} takes {_ms(self.pass_s)}; {relief}"
        return f"{way} sets the pace, {_ms(self.pass_s)}; the slowest station is {self.slowest}, {busy}; {relief}"


@dataclass(frozen=True)
class Explanation:
    """`best_size` is the fastest other size of one phase's micro-batches, faster than the plan's or not."""

    prefill_s: float
    decode_s: float
    tokens_per_s: float
    memory: tuple[MemoryFinding, ...]
    quality: QualityFinding
    pace: tuple[PaceFinding, ...]
    best_size: SizeChange | None
    even_split: str

    @property
    def binding(self) -> tuple[str, ...]:
        """The limits that would have to give way for a better plan."""
        memory = tuple(f"the memory of {finding.device}" for finding in self.memory if finding.binds)
        return (*memory, "the quality limit") if self.quality.binds else memory

    @property
    def sentences(self) -> tuple[tuple[str, str], ...]:
        """What each is about, and what it says."""
        return (
            ("seconds", f"{self.prefill_s:.2f} prefill + {self.decode_s:.2f} decode, {self.tokens_per_s:.1f} tokens/s"),
            ("binding", self._binding),
            *(("memory", finding.sentence) for finding in self.memory),
            ("quality", self.quality.sentence),
            *((finding.phase.value, finding.sentence) for finding in self.pace),
            ("idle", self._idle),
            ("micro-batch", self._sizes),
            ("uniform", self.even_split),
        )

    @property
    def _binding(self) -> str:
        binding = ", ".join(self.binding) or "neither memory nor quality"
        unused = [finding.device for finding in self.memory if finding.has_use]
        return f"{binding}; there is room that would help on {', '.join(unused)}" if unused else binding

    @property
    def _idle(self) -> str:
        most = max(self.memory, key=lambda finding: finding.idle_share)
        state, change = f"{most.device} idles most, {most.idle_share:.0%} of the batch", most.one_more_layer
        if change is None:
            return f"{state}; no stage next to it could give it a layer"
        needs = "" if change.fits else f"need {missing_mib(change.missing_bytes)} more and "
        return f"{state}; layer {change.layer} there would {needs}mean {_time_words(change.slower)}"

    @property
    def _sizes(self) -> str:
        change = self.best_size
        if change is None or change.slower > -NOTICEABLE:
            return "no other size in one of the phases fits and is faster with these stages"
        sizes = f"{change.phase.value} in micro-batches of {change.micro_batch_size}"
        return f"{sizes} would fit these stages and mean {_time_words(change.slower)}"

    def to_json(self) -> dict[str, Any]:
        """The findings as they are, whether each binds, and the sentences."""
        return {
            "binding": self.binding,
            "prefill_s": self.prefill_s,
            "decode_s": self.decode_s,
            "tokens_per_s": self.tokens_per_s,
            "memory": [asdict(finding) | {"binds": finding.binds} for finding in self.memory],
            "quality": asdict(self.quality) | {"binds": self.quality.binds},
            "pace": [asdict(finding) | {"pace": finding.pace} for finding in self.pace],
            "best_size": self.best_size and asdict(self.best_size),
            "sentences": [{"about": about, "says": says} for about, says in self.sentences],
        }


def explain(plan: Plan, request: PlanRequest) -> Explanation:
    """Judge a plan of the request's model with its links, seconds, indicator and choices; the limits are the plan's."""
    changes = PlanChanges(plan, request)
    memory = tuple(_memory(changes, stage) for stage in range(len(plan.stages)))
    limit = plan.quality.limit if plan.quality else math.inf
    estimate = estimate_plan(plan, request.model, request.cluster, request.latency)
    return Explanation(
        prefill_s=estimate.prefill_s,
        decode_s=estimate.decode_s,
        tokens_per_s=estimate.tokens_per_s,
        memory=memory,
        quality=QualityFinding(
            used=changes.omega,
            limit=limit if math.isfinite(limit) and not request.model.stored_choices else None,
            tolerance=QUALITY_TOLERANCE * max(max(row) for row in request.sensitivity.omega),
            unit=request.sensitivity.unit,
            fewer_bits=changes.fewer_bits([finding.device for finding in memory if finding.binds]),
        ),
        pace=tuple(_pace(changes, phase) for phase in Phase),
        best_size=changes.best_size(),
        even_split=why_not_uniform(replace(request, omega_limit=limit), replace(plan, estimate=estimate)),
    )


def _memory(changes: PlanChanges, stage: int) -> MemoryFinding:
    device, makespan = changes.costs.devices[stage], changes.makespan
    return MemoryFinding(
        device=device.name,
        memory_bytes=device.memory_bytes,
        free_bytes=device.memory_bytes - changes.used_bytes[stage],
        more_bits=changes.more_bits(stage),
        one_more_layer=changes.one_more_layer(stage),
        idle_share=makespan.idle_share(stage),
        phase_idle_share={phase: makespan.phase_idle_share(stage, phase) for phase in Phase},
    )


def _pace(changes: PlanChanges, phase: Phase) -> PaceFinding:
    costs, makespan = changes.costs.of_phase(phase), changes.makespan
    station = _slowest_station(costs)
    plan = changes.plan
    relieved = recurrence(
        _Relieved(changes.costs, phase, station),
        plan.workload,
        plan.prefill_micro_batch_size,
        plan.decode_micro_batch_size,
    )
    return PaceFinding(
        phase=phase,
        seconds=makespan.prefill_s if phase is Phase.PREFILL else makespan.decode_s,
        micro_batches=costs.micro_batches,
        slowest=station.name(changes.costs),
        slowest_s=costs.slowest_s,
        pass_s=costs.pass_s,
        relief=changes.slower(relieved.total_s),
    )


@dataclass(frozen=True)
class _Station:
    """The compute of a stage, the link behind it, or (`stage` is the last) the return of the tokens."""

    kind: Literal["stage", "link", "return"]
    stage: int

    def name(self, costs: PlanCosts) -> str:
        device = costs.devices[self.stage].name
        if self.kind == "stage":
            return f"stage {self.stage} on {device}"
        if self.kind == "link":
            return f"the link from {device} to {costs.devices[self.stage + 1].name}"
        return f"the return of the tokens from {device} to {costs.devices[0].name}"


def _slowest_station(costs: PhaseCosts) -> _Station:
    last = len(costs.compute_s) - 1
    seconds = {_Station("stage", stage): seconds for stage, seconds in enumerate(costs.compute_s)}
    seconds |= {_Station("link", stage): seconds for stage, seconds in enumerate(costs.send_s)}
    seconds[_Station("return", last)] = costs.return_s
    return max(seconds, key=seconds.__getitem__)


@dataclass(frozen=True)
class _Relieved:
    """`StationCosts` of a plan with one station a tenth quicker in one phase."""

    costs: PlanCosts
    phase: Phase
    station: _Station

    @property
    def num_stages(self) -> int:
        return self.costs.num_stages

    def compute_s(self, stage: int, phase: Phase, batch: int, past_tokens: int) -> float:
        return self._share(_Station("stage", stage), phase) * self.costs.compute_s(stage, phase, batch, past_tokens)

    def send_s(self, stage: int, phase: Phase, batch: int) -> float:
        return self._share(_Station("link", stage), phase) * self.costs.send_s(stage, phase, batch)

    def return_s(self, phase: Phase, batch: int) -> float:
        return self._share(_Station("return", self.num_stages - 1), phase) * self.costs.return_s(phase, batch)

    def _share(self, station: _Station, phase: Phase) -> float:
        return 1 - RELIEF if (station, phase) == (self.station, self.phase) else 1.0


def _time_words(slower: float) -> str:
    """``2.1% less time``."""
    if abs(slower) < NOTICEABLE:
        return "the same time"
    return f"{abs(slower):.1%} {'less' if slower < 0 else 'more'} time"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
