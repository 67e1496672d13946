"""`SensitivityTable`: the indicator ω, what each choice for each decoder layer costs in quality."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from hetero_infer.spec.choice import Choice
from hetero_infer.spec.errors import InputError, located
from hetero_infer.spec.fields import read_fields, read_value
from hetero_infer.spec.files import read_json, write_atomically

FORMAT = 1
FIELDS = {"format": int, "method": str, "model": str, "text": str, "unit": str, "choices": list, "omega": list}


@dataclass(frozen=True)
class SensitivityTable:
    """`omega[layer][k]` is the expected loss increase of decoder layer `layer` under `choices[k]`, in `unit`."""

    method: str
    model_digest: str
    text_digest: str
    unit: str
    choices: tuple[Choice, ...]
    omega: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if len(set(self.choices)) != len(self.choices):
            raise InputError(f"choices: one of {', '.join(map(str, self.choices))} stands there twice")
        for layer, row in enumerate(self.omega):
            if len(row) != len(self.choices):
                raise InputError(f"omega[{layer}] has {len(row)} values for {len(self.choices)} choices")
            for k, value in enumerate(row):
                if not 0 <= value < math.inf:
                    raise InputError(f"omega[{layer}][{k}] = {value}: an indicator is a number of at least 0")

    def of(self, layer: int, choice: Choice) -> float:
        return self.omega[layer][self.choices.index(choice)]

    def save(self, path: Path) -> None:
        content = {
            "format": FORMAT,
            "method": self.method,
            "model": self.model_digest,
            "text": self.text_digest,
            "unit": self.unit,
            "choices": [choice.to_json() for choice in self.choices],
            "omega": self.omega,
        }
        write_atomically(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "SensitivityTable":
        where = f"sensitivity {path}"
        content = read_fields(read_json(path, "sensitivity", FORMAT), FIELDS, where)
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
        with located(where):
            return cls(content["method"], content["model"], content["text"], content["unit"], choices, omega)
