"""`ProfileTable`: measured seconds of one layer on one device type, as ``profile.csv``."""

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hetero_infer.spec.choice import Choice
from hetero_infer.spec.errors import InputError, located
from hetero_infer.spec.fields import KINDS, nearest, read_value
from hetero_infer.spec.files import read_text, write_atomically
from hetero_infer.spec.workload import Phase

FORMAT = 1
DECODER, EMBEDDING, HEAD = "decoder", "embedding", "head"


@dataclass(frozen=True)
class ProfileRow:
    """One measured point. `input_tokens` and `past_tokens` are per sequence; `seconds` are for the whole batch.

    `device` is a device type, measured without emulated slowdown. `model` is the model's name, with ``#embedding``
    or ``#head`` after it for the layers that are no decoder layers.
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
    def layer_kind(self) -> str:
        """`DECODER`, `EMBEDDING` or `HEAD`."""
        return self.model.partition("#")[2] or DECODER


COLUMNS: Mapping[str, Any] = {column.name: column.type for column in fields(ProfileRow)}


@dataclass(frozen=True)
class ProfileTable:
    rows: tuple[ProfileRow, ...]
    header: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        stream = io.StringIO()
        for key, value in {"format": str(FORMAT), **self.header}.items():
            stream.write(f"# {key} = {value}\n")
        writer = csv.DictWriter(stream, [f.name for f in fields(ProfileRow)], lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow(asdict(row) | {"phase": row.phase.value, "seconds": f"{row.seconds:.6e}"})
        write_atomically(path, stream.getvalue())

    @classmethod
    def load(cls, path: Path) -> "ProfileTable":
        lines = read_text(path, "profile").splitlines()
        header = dict(_header_entry(line) for line in lines if line.startswith("#"))
        if header.pop("format", None) != str(FORMAT):
            raise InputError(f"profile {path}: its first line must read '# format = {FORMAT}'")
        reader = csv.reader(line for line in lines if not line.startswith("#"))
        columns = next(reader, [])
        for column in columns:
            if column not in COLUMNS:
                raise InputError(f"profile {path}: the column {column} is not known{nearest(column, COLUMNS)}")
        for column in COLUMNS:
            if column not in columns:
                raise InputError(f"profile {path}: the column {column} is missing")
            if columns.count(column) > 1:
                raise InputError(f"profile {path}: the column {column} stands there twice")
        rows = []
        for number, cells in enumerate(filter(None, reader), 1):
            where = f"profile {path}, row {number}"
            if len(cells) != len(columns):
                raise InputError(f"{where}: {len(cells)} values for {len(columns)} columns")
            rows.append(_row(dict(zip(columns, cells, strict=True)), where))
        return cls(tuple(rows), header)


def _header_entry(line: str) -> tuple[str, str]:
    key, _, value = line.lstrip("# ").partition("=")
    return key.strip(), value.strip()


def _row(cells: Mapping[str, str], where: str) -> ProfileRow:
    values = {column: _value(cells[column], kind, f"{where}: {column}") for column, kind in COLUMNS.items()}
    if values["seconds"] <= 0 or values["batch"] < 1 or min(values["input_tokens"], values["past_tokens"]) < 0:
        raise InputError(f"{where}: batch and seconds are above 0, tokens not below it")
    row = ProfileRow(**values)
    with located(where):
        Choice(row.bits, row.group_size, row.activations)
    return row


def _value(text: str, kind: Any, place: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        wanted = f"one of {', '.join(Phase)}" if kind is Phase else KINDS[kind]
        raise InputError(f"{place} = {text!r} is not {wanted}") from None
    return read_value(value, kind, place) if kind in KINDS else value
