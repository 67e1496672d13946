"""What people are shown of a plan for real requests: the proposals for a file, and what is sustained of a stream."""

from collections.abc import Sequence

from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.requests import Proposal, judged_s
from hetero_infer.planner.steady import steady_state
from hetero_infer.report import duration, predicted, text_table
from hetero_infer.spec import Objective, Plan
from hetero_infer.spec.requests import requests_per_s


def proposals_table(proposals: Sequence[Proposal]) -> str:
    """Plans for a file of requests by what they were made for, the one that was taken first."""
    rows = [("planned for", "prompt", "new", "prefill by", "decode by", "layers", "the file")]
    for proposal in proposals:
        plan = proposal.plan
        layers = " ".join(str(len(plan.decoder_range(stage))) for stage in range(len(plan.stages)))
        lengths = str(proposal.workload.prompt_tokens), str(proposal.workload.new_tokens)
        sizes = str(plan.prefill_micro_batch_size), str(plan.decode_micro_batch_size)
        rows.append((proposal.lengths, *lengths, *sizes, layers, duration(proposal.seconds)))
    return "\n" + text_table(rows, right=(1, 2, 3, 4, 6))


def requests_words(plan: Plan, request: PlanRequest) -> str:
    """What a plan does with real requests: the seconds of a file, or what it sustains of a stream."""
    requests, left_out = request.requests.lengths, request.requests.left_out
    there = f"{len(requests)} requests" + (f", and {left_out} left out that are longer or wrong" if left_out else "")
    if request.objective is not Objective.STEADY:
        seconds = judged_s(plan, request)
        tokens = sum(one.new_tokens for one in requests)
        return f"{there}: {duration(seconds)} {predicted(plan)} for all, {tokens / seconds:.1f} tokens/s"
    steady, (mean, peak) = steady_state(plan, request), requests_per_s(requests)
    keeps_up = "all of it" if steady.requests_per_s >= peak else "its average, not its peak"
    if steady.requests_per_s < mean:
        keeps_up = "not even its average"
    return (
        f"{there}, {mean:.3g} a second on average and {peak:.3g} in the busiest minute. The steady state is "
        f"{predicted(plan)}, with continuous batching: {steady.requests_per_s:.3g} requests/s sustained, {keeps_up}; "
        f"{steady.tokens_per_s:.1f} tokens/s, a round takes {duration(steady.period_s)}"
    )
