"""The nouns that every other part speaks in. Standard library only."""

from hetero_infer.spec.choice import UNQUANTISED, Choice
from hetero_infer.spec.cluster import Cluster, Device, Link
from hetero_infer.spec.config import RunConfig
from hetero_infer.spec.errors import HeteroInferError, InfeasibleError, InputError
from hetero_infer.spec.fleet import Fleet
from hetero_infer.spec.gpu_type import GpuType
from hetero_infer.spec.links import LinkTable
from hetero_infer.spec.model import ModelSpec
from hetero_infer.spec.objective import Objective
from hetero_infer.spec.plan import Plan, PlanEstimate, QualityPlan, SolverReport, StagePlan
from hetero_infer.spec.profile import ProfileRow, ProfileTable
from hetero_infer.spec.sensitivity import SensitivityTable
from hetero_infer.spec.workload import Phase, Workload

__all__ = [
    "UNQUANTISED",
    "Choice",
    "Cluster",
    "Device",
    "Fleet",
    "GpuType",
    "HeteroInferError",
    "InfeasibleError",
    "InputError",
    "Link",
    "LinkTable",
    "ModelSpec",
    "Objective",
    "Phase",
    "Plan",
    "PlanEstimate",
    "ProfileRow",
    "ProfileTable",
    "QualityPlan",
    "RunConfig",
    "SensitivityTable",
    "SolverReport",
    "StagePlan",
    "Workload",
]
