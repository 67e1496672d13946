"""What a plan's seconds are: a closed form that a MILP can minimise, one per objective.

    seconds = a·L_p + b·M_p + R·max(md·M_d, L_d) + c·L_d + d·M_d

L is one micro-batch once round the ring (a pass), M the slowest station, of the prefill (p) and the decode (d).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hetero_infer.cost.stream import Newcomers, newcomers
from hetero_infer.cost.timeline import PhaseCosts
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.objective import Objective
from hetero_infer.spec.plan import num_micro_batches
from hetero_infer.spec.workload import Phase


@dataclass(frozen=True)
class ClosedForm:
    """The coefficients: `passes` are a and c, `slowest` are b and d, `rounds` is R."""

    micro_batches: Mapping[Phase, int]
    passes: Mapping[Phase, float]
    slowest: Mapping[Phase, float]
    rounds: float

    def seconds(self, prefill: PhaseCosts, decode: PhaseCosts) -> float:
        return self.of_totals(prefill.pass_s, prefill.slowest_s, decode.pass_s, decode.slowest_s)

    def of_totals(self, prefill_pass_s: float, prefill_slowest_s: float, pass_s: float, slowest_s: float) -> float:
        """From L_p, M_p, L_d and M_d."""
        return (
            self.passes[Phase.PREFILL] * prefill_pass_s
            + self.slowest[Phase.PREFILL] * prefill_slowest_s
            + self.rounds * max(self.micro_batches[Phase.DECODE] * slowest_s, pass_s)
            + self.passes[Phase.DECODE] * pass_s
            + self.slowest[Phase.DECODE] * slowest_s
        )


def closed_form(request: PlanRequest, size: Mapping[Phase, int]) -> ClosedForm:
    """Of the request's objective, for micro-batches of `size` sequences."""
    workload = request.workload
    micro_batches = {phase: num_micro_batches(workload.batch_size, size[phase]) for phase in Phase}
    if request.objective is Objective.STEADY:
        return steady(micro_batches, newcomers(workload, size[Phase.PREFILL], size[Phase.DECODE]))
    return _FORMS[request.objective](micro_batches, workload.new_tokens)


def shared_prefills(request: PlanRequest, size: Mapping[Phase, int]) -> float:
    """Prefill micro-batches that each decode micro-batch is charged at every station: none but in a stream."""
    if request.objective is not Objective.STEADY:
        return 0.0
    return newcomers(request.workload, size[Phase.PREFILL], size[Phase.DECODE]).shared


def ring(micro_batches: Mapping[Phase, int], new_tokens: int) -> ClosedForm:
    """`prefill_seconds` + `decode_seconds` of cost/timeline.py: what the engine's schedules take."""
    decodes = min(1, new_tokens - 1)  # the prefill gives the first token
    return ClosedForm(
        micro_batches,
        passes={Phase.PREFILL: 1, Phase.DECODE: decodes},
        slowest={
            Phase.PREFILL: micro_batches[Phase.PREFILL] - 1,
            Phase.DECODE: decodes * (micro_batches[Phase.DECODE] - 1),
        },
        rounds=max(0, new_tokens - 2),
    )


def steady(micro_batches: Mapping[Phase, int], coming: Newcomers) -> ClosedForm:
    """`period_seconds` of cost/stream.py, a round of a stream; L_d and M_d have their share of the prefill in them."""
    return ClosedForm(
        micro_batches,
        passes={Phase.PREFILL: coming.alone, Phase.DECODE: 0},
        slowest={Phase.PREFILL: 0, Phase.DECODE: 0},
        rounds=1,
    )


def llm_pq(micro_batches: Mapping[Phase, int], new_tokens: int) -> ClosedForm:
    """What LLM-PQ's published code minimises: with one decode micro-batch it counts a single token. For comparison."""
    return ClosedForm(
        micro_batches,
        passes={Phase.PREFILL: 1, Phase.DECODE: min(1, new_tokens - 1)},
        slowest={
            Phase.PREFILL: micro_batches[Phase.PREFILL] - 1,
            Phase.DECODE: (new_tokens - 1) * (micro_batches[Phase.DECODE] - 1),
        },
        rounds=0,
    )


_FORMS = {Objective.RING: ring, Objective.LLM_PQ: llm_pq}
