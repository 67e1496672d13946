"""`SensitivityTable`: the indicator ω, what each choice for each decoder layer costs in quality."""

import json
from dataclasses import dataclass
from pathlib import Path

from hetero_infer.spec.choice import Choice
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.files import read_json, write_atomically

FORMAT = 1


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
        if any(len(row) != len(self.choices) for row in self.omega):
            raise InputError(f"sensitivity: every layer needs {len(self.choices)} values, one per choice")
        if any(not value >= 0 for row in self.omega for value in row):
            raise InputError("sensitivity: an indicator is a number of at least 0")

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
        content = read_json(path, "sensitivity", FORMAT)
        try:
            return cls(
                content["method"],
                content["model"],
                content["text"],
                content["unit"],
                tuple(Choice.from_json(choice, f"sensitivity {path}") for choice in content["choices"]),
                tuple(tuple(map(float, row)) for row in content["omega"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"sensitivity {path}: {error!r} is missing or not as it should be") from error
