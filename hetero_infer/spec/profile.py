"""`ProfileTable`: measured seconds of one layer on one device type, as ``profile.csv``."""

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from hetero_infer.spec.choice import Choice
from hetero_infer.spec.errors import InputError
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
        reader = csv.DictReader(line for line in lines if not line.startswith("#"))
        rows = []
        for number, entry in enumerate(reader, 1):
            try:
                rows.append(_row(entry))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"profile {path}, row {number}: {error!r} in {entry}") from error
        return cls(tuple(rows), header)


def _header_entry(line: str) -> tuple[str, str]:
    key, _, value = line.lstrip("# ").partition("=")
    return key.strip(), value.strip()


def _row(entry: Mapping[str, str]) -> ProfileRow:
    return ProfileRow(
        device=entry["device"],
        model=entry["model"],
        hidden_size=int(entry["hidden_size"]),
        intermediate_size=int(entry["intermediate_size"]),
        bits=int(entry["bits"]),
        group_size=int(entry["group_size"]),
        activations=entry["activations"],
        phase=Phase(entry["phase"]),
        batch=int(entry["batch"]),
        input_tokens=int(entry["input_tokens"]),
        past_tokens=int(entry["past_tokens"]),
        seconds=float(entry["seconds"]),
    )
