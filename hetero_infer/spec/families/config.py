"""`ModelConfig`: typed reading of a ``config.json``, which names the field that is missing, wrong or not supported."""

from collections.abc import Mapping
from typing import Any

from hetero_infer.spec.errors import InputError

REQUIRED = object()
MOST = 2**24  # of anything that is counted in a model
MOST_NUMBER = 1e12
ACTIVATIONS = ("silu", "relu", "gelu", "gelu_new", "gelu_pytorch_tanh")


class ModelConfig:
    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content = content
        self.where = where

    def refusal(self, field: str, reason: str) -> InputError:
        return InputError(f"model config {self.where}: {field} = {self.content.get(field)!r}: {reason}")

    def refuse_unless(self, field: str, expected: object, reason: str) -> None:
        """`field` must be missing, null or as expected."""
        if self.content.get(field) not in (None, expected):
            raise self.refusal(field, reason)

    def count(self, *fields: str, default: Any = REQUIRED) -> Any:
        """A whole number of at least 1 under the first of the names that is there; null counts as not said."""
        return self._number(fields, default, (int,), MOST, f"a whole number from 1 to {MOST}")

    def number(self, *fields: str, default: Any = REQUIRED) -> Any:
        """A number above 0."""
        value = self._number(fields, default, (int, float), MOST_NUMBER, f"a number above 0, at most {MOST_NUMBER:g}")
        return value if value is None else float(value)

    def _number(self, fields: tuple[str, ...], default: Any, kinds: tuple[type, ...], most: float, wanted: str) -> Any:
        for field in fields:
            value = self.content.get(field)
            if value is not None:
                if type(value) not in kinds or not 0 < value <= most:
                    raise self.refusal(field, wanted)
                return value
        if default is REQUIRED:
            raise InputError(f"model config {self.where}: the field {fields[0]!r} is missing")
        return default

    def flag(self, field: str, default: bool) -> bool:
        value = self.content.get(field)
        if value is not None and type(value) is not bool:
            raise self.refusal(field, "true or false")
        return default if value is None else value

    def activation(self, field: str, default: str) -> str:
        value = self.content.get(field)
        if value is None:
            return default
        if value not in ACTIVATIONS:
            raise self.refusal(field, f"this version computes {', '.join(ACTIVATIONS)}")
        return str(value)

    def eos_token_ids(self) -> tuple[int, ...]:
        """`eos_token_id` may be one id, several or none."""
        value = self.content.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(token) is not int or token < 0 for token in ids):
            raise self.refusal("eos_token_id", "a token id, or a list of them")
        return tuple(ids)

    def table(self, field: str) -> "ModelConfig | None":
        """A nested object, with messages that name it."""
        value = self.content.get(field)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.refusal(field, "an object")
        return ModelConfig(value, f"{self.where}, {field}")
