"""`SensitivityTable`: the indicator ω, what each choice for each layer costs in quality, and how well that is known."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

from hetero_infer.spec.choice import UNQUANTISED, Choice
from hetero_infer.spec.errors import InputError, located
from hetero_infer.spec.fields import read_fields, read_value
from hetero_infer.spec.files import read_json, write_atomically

FORMAT = 1
FIELDS = {"format": int, "method": str, "model": str, "text": str, "unit": str, "choices": list, "omega": list}
METHODS = ("variance", "variance-stochastic", "hessian", "fisher", "measured", "random")
EndKind = Literal["embedding", "head"]
ENDS: tuple[EndKind, ...] = ("embedding", "head")
OPTIONAL_FIELDS = {"embedding": list, "head": list, "errors": dict}
ERROR_FIELDS = {"scale": list, "omega": list, "embedding": list, "head": list}


@dataclass(frozen=True)
class StandardErrors:
    """Of a table's values. `omega`, `embedding` and `head` are in its unit and independent of each other; `scale[k]` is
    relative, and moves all decoder layers at `choices[k]` together."""

    scale: tuple[float, ...]
    omega: tuple[tuple[float, ...], ...]
    embedding: Mapping[Choice, float]
    head: Mapping[Choice, float]


@dataclass(frozen=True)
class SensitivityTable:
    """`omega[layer][k]` is the expected loss increase of decoder layer `layer` under `choices[k]`, in `unit`.

    `embedding` and `head` say the same of the ends, which have choices of their own. A table without `errors`, as a
    person may write it, counts as exact.
    """

    method: str
    model_digest: str
    text_digest: str
    unit: str
    choices: tuple[Choice, ...]
    omega: tuple[tuple[float, ...], ...]
    embedding: Mapping[Choice, float] = field(default_factory=lambda: {UNQUANTISED: 0.0})
    head: Mapping[Choice, float] = field(default_factory=lambda: {UNQUANTISED: 0.0})
    errors: StandardErrors | None = None

    def __post_init__(self) -> None:
        if len(set(self.choices)) != len(self.choices):
            raise InputError(f"choices: one of {', '.join(map(str, self.choices))} stands there twice")
        _refuse_odd_values(self, len(self.choices), "an indicator")
        if self.errors:
            with located("errors"):
                _refuse_odd_errors(self, self.errors)

    @classmethod
    def of_stored(cls, stored: Sequence[Choice], model_digest: str) -> "SensitivityTable":
        """Of a model that is quantised already. What it lost by that is unknown; none of its layers may change."""
        choices = tuple(sorted(set(stored)))
        omega = tuple(tuple(float(choice != own) for choice in choices) for own in stored)
        return cls("stored", model_digest, "", "layers other than stored", choices, omega)

    def of(self, layer: int, choice: Choice) -> float:
        return self.omega[layer][self.choices.index(choice)]

    def of_kind(self, kind: EndKind) -> Mapping[Choice, float]:
        return self.embedding if kind == "embedding" else self.head

    def of_end(self, kind: EndKind, choice: Choice) -> float:
        return self.of_kind(kind)[choice]

    def total(self, layer_choices: Sequence[Choice]) -> float:
        """Σ ω of `[embedding, decoder 0, …, decoder L-1, head]`."""
        embedding, *decoders, head = layer_choices
        layers = (self.of(layer, choice) for layer, choice in enumerate(decoders))
        return math.fsum((self.of_end("embedding", embedding), *layers, self.of_end("head", head)))

    def upper_total(self, layer_choices: Sequence[Choice], confidence: float = 0.95) -> float:
        """What Σ ω stays below with this confidence, if the errors are normal ones.

        A layer's own error is independent of the others'. Those of the scales come from the same windows of text and
        are added up as if they always went the same way.
        """
        total = self.total(layer_choices)
        if self.errors is None:
            return total
        embedding, *decoders, head = layer_choices
        columns = [self.choices.index(choice) for choice in decoders]
        shared = math.fsum(self.omega[layer][k] * self.errors.scale[k] for layer, k in enumerate(columns))
        own = [self.errors.omega[layer][k] for layer, k in enumerate(columns)]
        error = math.hypot(shared, *own, self.errors.embedding[embedding], self.errors.head[head])
        return total + NormalDist().inv_cdf(confidence) * error

    def save(self, path: Path) -> None:
        content: dict[str, Any] = {
            "format": FORMAT,
            "method": self.method,
            "model": self.model_digest,
            "text": self.text_digest,
            "unit": self.unit,
            "choices": [choice.to_json() for choice in self.choices],
        }
        content |= _values_json(self)
        if self.errors:
            content["errors"] = {"scale": self.errors.scale, **_values_json(self.errors)}
        write_atomically(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "SensitivityTable":
        where = f"sensitivity {path}"
        content = read_fields(read_json(path, "sensitivity", FORMAT), FIELDS, where, OPTIONAL_FIELDS)
        choices = tuple(
            Choice.from_json(choice, f"{where}, choices[{k}]") for k, choice in enumerate(content["choices"])
        )
        errors = None
        if "errors" in content:
            of_errors = f"{where}: errors"
            said = read_fields(content["errors"], ERROR_FIELDS, of_errors)
            errors = StandardErrors(_read_row(said["scale"], f"{of_errors}: scale"), **_read_values(said, of_errors))
        values = _read_values(content, where)
        with located(where):
            return cls(
                content["method"], content["model"], content["text"], content["unit"], choices, **values, errors=errors
            )


def _refuse_odd_values(of: SensitivityTable | StandardErrors, num_choices: int, what: str) -> None:
    for layer, row in enumerate(of.omega):
        if len(row) != num_choices:
            raise InputError(f"omega[{layer}] has {len(row)} values for {num_choices} choices")
        _refuse_negative({f"omega[{layer}][{k}]": value for k, value in enumerate(row)}, what)
    for kind, end in (("embedding", of.embedding), ("head", of.head)):
        _refuse_negative({f"{kind} at {choice} bits": value for choice, value in end.items()}, what)


def _refuse_odd_errors(table: SensitivityTable, errors: StandardErrors) -> None:
    _refuse_odd_values(errors, len(table.choices), "a standard error")
    _refuse_negative({f"scale[{k}]": value for k, value in enumerate(errors.scale)}, "a standard error")
    if _shape(table, table.choices) != _shape(errors, errors.scale):
        raise InputError("there is not one for each value of the table")


def _shape(of: SensitivityTable | StandardErrors, columns: Sequence[object]) -> tuple[object, ...]:
    return len(columns), len(of.omega), of.embedding.keys(), of.head.keys()


def _refuse_negative(values: Mapping[str, float], what: str) -> None:
    for place, value in values.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{place} = {value}: {what} is a number of at least 0")


def _values_json(of: SensitivityTable | StandardErrors) -> dict[str, Any]:
    return {"omega": of.omega, "embedding": _end_json(of.embedding), "head": _end_json(of.head)}


def _end_json(omega: Mapping[Choice, float]) -> list[dict[str, Any]]:
    return [{"choice": choice.to_json(), "omega": value} for choice, value in omega.items()]


def _read_values(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    rows = content["omega"]
    ends: dict[str, Any] = {kind: _read_end(content[kind], f"{where}: {kind}") for kind in ENDS if kind in content}
    return {"omega": tuple(_read_row(row, f"{where}: omega[{layer}]") for layer, row in enumerate(rows)), **ends}


def _read_row(row: object, where: str) -> tuple[float, ...]:
    values = read_value(row, list, where)
    return tuple(float(read_value(value, float, f"{where}[{k}]")) for k, value in enumerate(values))


def _read_end(content: list[object], where: str) -> dict[Choice, float]:
    omega: dict[Choice, float] = {}
    for k, entry in enumerate(content):
        said = read_fields(entry, {"choice": dict, "omega": float}, f"{where}[{k}]")
        choice = Choice.from_json(said["choice"], f"{where}[{k}]")
        if choice in omega:
            raise InputError(f"{where}: {choice} bits stand there twice")
        omega[choice] = float(said["omega"])
    return omega
