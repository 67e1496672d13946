"""`ProfileTable`: measured seconds of one layer on one device type, as ``profile.csv``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hetero_infer.spec.choice import Choice
from hetero_infer.spec.csv_file import read_csv, write_csv
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.workload import Phase

DECODER, EMBEDDING, HEAD = "decoder", "embedding", "head"


@dataclass(frozen=True)
class ProfileRow:
    """One measured point. `input_tokens` and `past_tokens` are per sequence; `seconds` are for the whole batch.

    `device` is a `Device.timed_as`, measured without emulated slowdown. `model` is the model's name, with
    ``#embedding`` or ``#head`` after it for the layers that are no decoder layers.
    """

    device: str
    model: str
    hidden_size: int
    intermediate_size: int
    bits: int
    group_size: int
    activations: str
    phase: Phase
    batch: int
    input_tokens: int
    past_tokens: int
    seconds: float

    @property
    def choice(self) -> Choice:
        return Choice(self.bits, self.group_size, self.activations)

    @property
    def model_name(self) -> str:
        return self.model.partition("#")[0]

    @property
    def layer_kind(self) -> str:
        """`DECODER`, `EMBEDDING` or `HEAD`."""
        return self.model.partition("#")[2] or DECODER


COLUMNS: Mapping[str, Any] = {column.name: column.type for column in fields(ProfileRow)}


@dataclass(frozen=True)
class ProfileTable:
    rows: tuple[ProfileRow, ...]
    header: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        rows = (row_to_json(row) | {"seconds": f"{row.seconds:.6e}"} for row in self.rows)
        write_csv(path, self.header, COLUMNS, rows)

    @classmethod
    def load(cls, path: Path) -> "ProfileTable":
        header, rows = read_csv(path, "profile", COLUMNS, _row)
        return cls(tuple(rows), header)

    @classmethod
    def load_if_there(cls, path: Path) -> "ProfileTable":
        return cls.load(path) if path.exists() else cls(())

    def with_measured(self, measured: "ProfileTable") -> "ProfileTable":
        """With the rows of `measured` in place of those of the same device types and models, and its header first."""
        replaced = {(row.device, row.model_name) for row in measured.rows}
        kept = tuple(row for row in self.rows if (row.device, row.model_name) not in replaced)
        types = {device for device, _ in replaced}
        header = {key: value for key, value in self.header.items() if key.rpartition(".")[0] not in types}
        return ProfileTable((*kept, *measured.rows), {**header, **measured.header})


def _row(values: Mapping[str, Any]) -> ProfileRow:
    if values["seconds"] <= 0 or values["batch"] < 1 or min(values["input_tokens"], values["past_tokens"]) < 0:
        raise InputError("batch and seconds are above 0, tokens not below it")
    row = ProfileRow(**values)
    Choice(row.bits, row.group_size, row.activations)
    return row


def row_to_json(row: ProfileRow) -> dict[str, Any]:
    return asdict(row) | {"phase": row.phase.value}


def row_from_json(entry: Mapping[str, Any]) -> ProfileRow:
    return ProfileRow(**{**entry, "phase": Phase(entry["phase"])})
