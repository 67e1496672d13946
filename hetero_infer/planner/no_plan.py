"""`NoPlan`: why a planner has none, where that is an answer and no error."""

from collections.abc import Collection
from dataclasses import dataclass

from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.search import find_plan
from hetero_infer.spec.errors import HeteroInferError, InfeasibleError, InputError, one_line
from hetero_infer.spec.plan import Plan


@dataclass(frozen=True)
class NoPlan:
    """Proven to be none, or time ran out first, or a baseline's rule gives none: `why` says which."""

    why: str
    is_proven: bool = False


def plan_or_why(
    request: PlanRequest, *, time_limit_s: float, gap: float, must_use: Collection[str] = ()
) -> Plan | NoPlan:
    """`find_plan`, where no plan is an answer, too."""
    try:
        return find_plan(request, time_limit_s=time_limit_s, gap=gap, must_use=must_use)
    except InputError:
        raise
    except HeteroInferError as error:
        return NoPlan(one_line(error), isinstance(error, InfeasibleError))
