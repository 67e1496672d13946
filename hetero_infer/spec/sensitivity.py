"""`SensitivityTable`: the indicator ω, what each choice for each layer costs in quality."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hetero_infer.spec.choice import UNQUANTISED, Choice
from hetero_infer.spec.errors import InputError, located
from hetero_infer.spec.fields import read_fields, read_value
from hetero_infer.spec.files import read_json, write_atomically

FORMAT = 1
FIELDS = {"format": int, "method": str, "model": str, "text": str, "unit": str, "choices": list, "omega": list}
EndKind = Literal["embedding", "head"]
ENDS: tuple[EndKind, ...] = ("embedding", "head")


@dataclass(frozen=True)
class SensitivityTable:
    """`omega[layer][k]` is the expected loss increase of decoder layer `layer` under `choices[k]`, in `unit`.

    `embedding` and `head` say the same of the ends, which have choices of their own.
    """

    method: str
    model_digest: str
    text_digest: str
    unit: str
    choices: tuple[Choice, ...]
    omega: tuple[tuple[float, ...], ...]
    embedding: Mapping[Choice, float] = field(default_factory=lambda: {UNQUANTISED: 0.0})
    head: Mapping[Choice, float] = field(default_factory=lambda: {UNQUANTISED: 0.0})

    def __post_init__(self) -> None:
        if len(set(self.choices)) != len(self.choices):
            raise InputError(f"choices: one of {', '.join(map(str, self.choices))} stands there twice")
        for layer, row in enumerate(self.omega):
            if len(row) != len(self.choices):
                raise InputError(f"omega[{layer}] has {len(row)} values for {len(self.choices)} choices")
            for k, value in enumerate(row):
                _refuse_odd(value, f"omega[{layer}][{k}]")
        for kind in ENDS:
            for choice, value in self.of_kind(kind).items():
                _refuse_odd(value, f"{kind} at {choice} bits")

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

    def save(self, path: Path) -> None:
        content: dict[str, Any] = {
            "format": FORMAT,
            "method": self.method,
            "model": self.model_digest,
            "text": self.text_digest,
            "unit": self.unit,
            "choices": [choice.to_json() for choice in self.choices],
            "omega": self.omega,
            "embedding": _end_json(self.embedding),
            "head": _end_json(self.head),
        }
        write_atomically(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "SensitivityTable":
        where = f"sensitivity {path}"
        content = read_fields(read_json(path, "sensitivity", FORMAT), FIELDS, where, dict.fromkeys(ENDS, list))
        choices = tuple(
            Choice.from_json(choice, f"{where}, choices[{k}]") for k, choice in enumerate(content["choices"])
        )
        omega = tuple(
            tuple(
                float(read_value(value, float, f"{where}: omega[{layer}][{k}]"))
                for k, value in enumerate(read_value(row, list, f"{where}: omega[{layer}]"))
            )
            for layer, row in enumerate(content["omega"])
        )
        ends = {kind: _read_end(content[kind], f"{where}: {kind}") for kind in ENDS if kind in content}
        with located(where):
            return cls(content["method"], content["model"], content["text"], content["unit"], choices, omega, **ends)


def _refuse_odd(value: float, place: str) -> None:
    if not 0 <= value < math.inf:
        raise InputError(f"{place} = {value}: an indicator is a number of at least 0")


def _end_json(omega: Mapping[Choice, float]) -> list[dict[str, Any]]:
    return [{"choice": choice.to_json(), "omega": value} for choice, value in omega.items()]


def _read_end(content: list[object], where: str) -> dict[Choice, float]:
    omega: dict[Choice, float] = {}
    for k, entry in enumerate(content):
        said = read_fields(entry, {"choice": dict, "omega": float}, f"{where}[{k}]")
        choice = Choice.from_json(said["choice"], f"{where}[{k}]")
        if choice in omega:
            raise InputError(f"{where}: {choice} bits stand there twice")
        omega[choice] = float(said["omega"])
    return omega
