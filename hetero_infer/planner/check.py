"""Re-check a plan, also a hand-edited one, without the MILP: from the plan itself and `cost/memory.py`."""

import itertools
import math
from collections.abc import Iterator

from hetero_infer.cost.latency import LatencyModel, LayerKind
from hetero_infer.cost.memory import plan_memory
from hetero_infer.planner.problem import QUALITY_TOLERANCE
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.model import ModelSpec
from hetero_infer.spec.plan import Plan
from hetero_infer.spec.sensitivity import ENDS, SensitivityTable

MIB = 2**20


def check_plan(
    plan: Plan, model: ModelSpec, sensitivity: SensitivityTable, latency: LatencyModel | None = None
) -> list[str]:
    """Every violation in a sentence; an empty list means that the plan can run and keeps its quality limit.

    With a `latency` also that its seconds are known: every device has them for each of its layers.
    """
    if plan.model["num_hidden_layers"] != model.num_hidden_layers:
        return [
            f"the plan is for {plan.model['num_hidden_layers']} decoder layers, the model has {model.num_hidden_layers}"
        ]
    violations = [*fit_violations(plan, model), *_quality_violations(plan, sensitivity)]
    return [*violations, *_latency_violations(plan, latency)] if latency else violations


def fit_violations(plan: Plan, model: ModelSpec) -> list[str]:
    """What keeps a plan from running at all, whatever it does to the quality."""
    return [*_position_violations(plan, model), *_memory_violations(plan, model)]


def unmeasured(plan: Plan, latency: LatencyModel) -> Iterator[tuple[int, LayerKind, Choice]]:
    """Each stage, kind of layer and choice for which the stage's device has no seconds."""
    decoders: list[LayerKind] = ["decoder"] * len(plan.decoder_choices)
    layers = list(zip(["embedding", *decoders, "head"], plan.layer_choices, strict=True))
    for stage, (start, stop) in enumerate(itertools.pairwise(plan.bounds)):
        for kind, choice in dict.fromkeys(layers[start:stop]):
            if not latency.allowed_choices(plan.device_of(stage), (choice,), kind):
                yield stage, kind, choice


def missing_mib(num_bytes: float) -> str:
    """MiB with one decimal, rounded up: adding them is enough."""
    return f"{math.ceil(num_bytes / MIB * 10) / 10:.1f} MiB"


def _position_violations(plan: Plan, model: ModelSpec) -> list[str]:
    workload = plan.workload
    if workload.cache_tokens <= model.max_position_embeddings:
        return []
    return [
        f"{workload.prompt_tokens} prompt and {workload.new_tokens} new tokens pass the model's "
        f"{model.max_position_embeddings} positions"
    ]


def _memory_violations(plan: Plan, model: ModelSpec) -> list[str]:
    """A sentence for each stage that does not fit its device."""
    violations = []
    for stage, memory in enumerate(plan_memory(model, plan)):
        device = plan.device_of(stage)
        if memory.total > device.memory_bytes:
            violations.append(
                f"stage {stage} ({device.type} on {device.name}) needs {missing_mib(memory.total)} and has "
                f"{device.memory_bytes / MIB:.1f}, it lacks {missing_mib(memory.total - device.memory_bytes)}; "
                "give it fewer bits or fewer layers, or lower batch_size"
            )
    return violations


def _quality_violations(plan: Plan, sensitivity: SensitivityTable) -> list[str]:
    if len(sensitivity.omega) != len(plan.decoder_choices):
        return [f"the sensitivity table has {len(sensitivity.omega)} layers, the plan {len(plan.decoder_choices)}"]
    unknown = {choice for choice in plan.decoder_choices if choice not in sensitivity.choices}
    if unknown:
        return [f"the sensitivity table has no {choice} bits; take a choice it has" for choice in sorted(unknown)]
    ends = zip(ENDS, (plan.embedding_choice, plan.head_choice), strict=True)
    unknown_ends = [(kind, choice) for kind, choice in ends if choice not in sensitivity.of_kind(kind)]
    if unknown_ends:
        return [
            f"the sensitivity table has no {kind} at {choice} bits; take a choice it has"
            for kind, choice in unknown_ends
        ]
    if plan.quality is None:
        return []
    said = []
    if plan.quality.measured is not None and plan.quality.is_broken:
        said.append(
            f"perplexity {math.expm1(plan.quality.measured):+.2%} measured on held-out text, "
            f"{plan.quality.max_perplexity_increase:+.2%} at most; 'hetero-infer plan --hold' makes a tighter plan; "
            "where its bits were changed since, take measured out"
        )
    loss = sensitivity.total(plan.layer_choices)
    losses = (*sensitivity.omega, *(sensitivity.of_kind(kind).values() for kind in ENDS))
    limit, largest = plan.quality.limit, max(map(max, losses))
    if loss > limit + QUALITY_TOLERANCE * largest:
        said.append(
            f"Σω = {loss:.6g} {sensitivity.unit} is over the limit of {limit:.6g}; "
            "give some layers more bits or raise max_perplexity_increase"
        )
    return said


def _latency_violations(plan: Plan, latency: LatencyModel) -> list[str]:
    violations = []
    for stage, kind, choice in unmeasured(plan, latency):
        device = plan.device_of(stage)
        violations.append(
            f"stage {stage} ({device.type} on {device.name}) has a {kind} at {choice} bits, for which nothing was "
            "measured there; take a choice that was, or measure that one"
        )
    return violations
