"""`Section`: one table of a bench, what it must show, and whether it did."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Demand:
    """Something a bench must show. `says` is a sentence with the figure; a failed one is printed, never hidden."""

    says: str
    is_met: bool


@dataclass(frozen=True)
class Section:
    """`rows` are cells as people read them, under `header`; `facts` the same for programs, and only JSON's types."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    demands: Sequence[Demand] = ()
    notes: Sequence[str] = ()
    facts: Sequence[dict[str, object]] = field(default_factory=tuple)
