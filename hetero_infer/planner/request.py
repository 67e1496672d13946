"""`PlanRequest`: everything a plan is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hetero_infer.cost.latency import LatencyModel
from hetero_infer.spec.choice import UNQUANTISED, Choice
from hetero_infer.spec.cluster import Cluster
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.model import ModelSpec
from hetero_infer.spec.objective import Objective
from hetero_infer.spec.requests import RealRequests
from hetero_infer.spec.sensitivity import ENDS, EndKind, SensitivityTable
from hetero_infer.spec.workload import Workload


@dataclass(frozen=True)
class PlanRequest:
    """`omega_limit` is Ω, in the sensitivity's unit; infinity means no quality limit.

    `workload` is what time is counted for. Where `room_for` is given memory is for it instead: the same batch of the
    longest requests that the plan admits. `objective` says which seconds: of one batch (`ring`), or of a round of a
    stream whose mean lengths are the workload's (`steady`). `requests` are those that the lengths are of, where they
    are known.

    `model_facts` (`path`, `digest`, `num_hidden_layers`) and `max_perplexity_increase` are only written into the plan.
    """

    model: ModelSpec
    model_facts: Mapping[str, Any]
    cluster: Cluster
    workload: Workload
    latency: LatencyModel
    sensitivity: SensitivityTable
    choices: tuple[Choice, ...]
    omega_limit: float
    max_perplexity_increase: float
    embedding_choices: tuple[Choice, ...] = (UNQUANTISED,)
    head_choices: tuple[Choice, ...] = (UNQUANTISED,)
    objective: Objective = Objective.RING
    room_for: Workload | None = None
    requests: RealRequests = field(default_factory=RealRequests)

    @property
    def admitted(self) -> Workload:
        """The workload that memory is for."""
        return self.room_for or self.workload

    def __post_init__(self) -> None:
        layers = self.model.num_hidden_layers
        if len(self.sensitivity.omega) != layers:
            raise InputError(
                f"the sensitivity table has {len(self.sensitivity.omega)} layers, the model has {layers}; "
                "run 'hetero-infer sensitivity' for this model"
            )
        missing = [str(choice) for choice in self.choices if choice not in self.sensitivity.choices]
        if missing:
            raise InputError(
                f"the sensitivity table lacks {', '.join(missing)} bits; "
                "run 'hetero-infer sensitivity' again or take them out of [quality] choices"
            )
        for kind in ENDS:
            missing = [str(choice) for choice in self.end_choices(kind) if choice not in self.sensitivity.of_kind(kind)]
            if missing:
                raise InputError(
                    f"the sensitivity table lacks the {kind} at {', '.join(missing)} bits; "
                    f"run 'hetero-infer sensitivity' again or take them out of [quality] {kind}"
                )
        if not self.omega_limit >= 0:
            raise InputError(f"the quality limit Ω = {self.omega_limit} must be at least 0")

    def end_choices(self, kind: EndKind) -> tuple[Choice, ...]:
        return self.embedding_choices if kind == "embedding" else self.head_choices
