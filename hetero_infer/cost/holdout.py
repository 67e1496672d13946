"""`HoldOut`: how far a model is off on measurements that it was not made from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class HoldOut:
    """Relative errors over `points` measurements that were held out."""

    mean: float
    worst: float
    points: int

    @classmethod
    def of(cls, predicted_and_measured: Iterable[tuple[float, float]]) -> "HoldOut | None":
        """None where nothing was held out."""
        errors = [abs(predicted / measured - 1) for predicted, measured in predicted_and_measured]
        return cls(sum(errors) / len(errors), max(errors), len(errors)) if errors else None

    def header(self, of: str) -> dict[str, str]:
        """For the head of a table, under the name of what was measured."""
        return {f"{of}.holdout_mean": f"{self.mean:.3f}", f"{of}.holdout_worst": f"{self.worst:.3f}"}


def every_second(values: Sequence[Value]) -> Sequence[Value]:
    """What to hold out of an axis: every second value, but neither end, so that nothing is predicted from outside."""
    return values[1:-1:2]
