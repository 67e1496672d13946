"""`PlanRequest`: everything a plan is made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hetero_infer.cost.latency import LatencyModel
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.cluster import Cluster
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.model import ModelSpec
from hetero_infer.spec.sensitivity import SensitivityTable
from hetero_infer.spec.workload import Workload


@dataclass(frozen=True)
class PlanRequest:
    """`omega_limit` is Ω, in the sensitivity's unit; infinity means no quality limit.

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
        if not self.omega_limit >= 0:
            raise InputError(f"the quality limit Ω = {self.omega_limit} must be at least 0")
