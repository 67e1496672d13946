"""What a plan sustains of a stream of requests: period, tokens and requests per second in the steady state."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hetero_infer.cost.stream import StreamRun, newcomers, period_seconds, stream
from hetero_infer.planner.estimate import PlanCosts, stations_of
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.plan import Plan
from hetero_infer.spec.requests import RequestLengths
from hetero_infer.spec.workload import Phase


@dataclass(frozen=True)
class SteadyState:
    """In a period, every slot gets a token. `new_tokens` are a request's on average."""

    period_s: float
    batch_size: int
    new_tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.batch_size / self.period_s

    @property
    def requests_per_s(self) -> float:
        return self.tokens_per_s / self.new_tokens


def steady_state(plan: Plan, request: PlanRequest) -> SteadyState:
    """In closed form, for requests as long as the request's workload; the plan may admit longer ones."""
    workload = request.workload
    costs = PlanCosts(replace(plan, workload=workload), request.model, request.cluster, request.latency)
    coming = newcomers(workload, plan.prefill_micro_batch_size, plan.decode_micro_batch_size)
    period_s = period_seconds(costs.of_phase(Phase.PREFILL), costs.of_phase(Phase.DECODE), coming)
    return SteadyState(period_s, workload.batch_size, workload.new_tokens)


def serve(plan: Plan, request: PlanRequest, requests: Sequence[RequestLengths]) -> StreamRun:
    """Every request as it came, by the plan's own costs: with a batch that never ends."""
    stations = stations_of(PlanCosts(plan, request.model, request.cluster, request.latency))
    sizes = plan.workload.batch_size, plan.prefill_micro_batch_size, plan.decode_micro_batch_size
    return stream(stations, requests, *sizes)
