"""`Choice`: how one layer is stored. The planner picks one per layer."""

from dataclasses import dataclass
from typing import Any

from hetero_infer.spec.errors import InputError, located
from hetero_infer.spec.fields import read_fields

BITWIDTHS = (3, 4, 8, 16)
DEFAULT_GROUP_SIZE = 64


@dataclass(frozen=True, order=True)
class Choice:
    """Bits per weight and, below 16, how many weights of an output channel share a scale (`group_size`).

    16 bits means unquantised: the weights live in the device's compute dtype, and `group_size` is 0.
    """

    bits: int
    group_size: int = 0
    activations: str = "float"

    def __post_init__(self) -> None:
        if self.bits not in BITWIDTHS:
            raise InputError(f"bits = {self.bits}: choose from {', '.join(map(str, BITWIDTHS))}")
        if self.activations != "float":
            raise InputError(f"activations = {self.activations!r}: only 'float' is implemented")
        if (self.bits == 16) != (self.group_size == 0):
            raise InputError(f"{self.bits} bits with group_size {self.group_size}: 16 bits has no groups, others do")
        if self.group_size % 32 or self.group_size < 0:
            raise InputError(f"group_size = {self.group_size}: must be a positive multiple of 32")

    @property
    def is_quantised(self) -> bool:
        return self.bits < 16

    @property
    def fineness(self) -> tuple[int, int]:
        """What sorts choices by their quality: more bits are finer, and of the same bits smaller groups."""
        return self.bits, -self.group_size

    def __str__(self) -> str:
        return f"{self.bits}g{self.group_size}" if self.is_quantised else "16"

    def to_json(self) -> dict[str, Any]:
        return {"bits": self.bits, "group_size": self.group_size, "activations": self.activations}

    @classmethod
    def from_json(cls, content: object, where: str) -> "Choice":
        """`group_size` is 64 where it is not said."""
        said = read_fields(content, {"bits": int}, where, {"group_size": int, "activations": str})
        default = 0 if said["bits"] == 16 else DEFAULT_GROUP_SIZE
        with located(where):
            return cls(said["bits"], said.get("group_size", default), said.get("activations", "float"))


UNQUANTISED = Choice(16)
