"""What stands in a file: each key known, there, and of its type, or an `InputError` says which is not."""

import dataclasses
import difflib
import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from hetero_infer.spec.errors import InputError

KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "a table of keys",
}
Kinds = Mapping[str, type]


def read_fields(content: object, required: Kinds, where: str, optional: Kinds | None = None) -> dict[str, Any]:
    """The fields of a table or JSON object. An optional one may be left out, or null."""
    kinds = {**required, **(optional or {})}
    for key in read_value(content, dict, where):
        if key not in kinds:
            raise InputError(f"{where}: {key} is not known{nearest(key, kinds)}")
    return read_some_fields(content, required, where, optional)


def read_some_fields(content: object, required: Kinds, where: str, optional: Kinds | None = None) -> dict[str, Any]:
    """The same where other keys may stand beside."""
    entries = read_value(content, dict, where)
    for key in required:
        if key not in entries:
            raise InputError(f"{where}: {key} is missing")
    found = {key: kind for key, kind in (optional or {}).items() if entries.get(key) is not None}
    return {key: read_value(entries[key], kind, f"{where}: {key}") for key, kind in {**required, **found}.items()}


def read_value(value: object, kind: type, place: str) -> Any:
    """`value`, being of the `kind`. A whole number is a number, too; a truth value is none, and neither is NaN."""
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise InputError(f"{place} = {reprlib.repr(value)} is not {KINDS[kind]}")
    if isinstance(value, int | float) and not is_finite(value):
        raise InputError(f"{place} = {reprlib.repr(value)} is not a finite number")
    return value


def is_finite(number: float) -> bool:
    """False also for a whole number that no float can hold."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def kinds_of(cls: type) -> dict[str, type]:
    """A dataclass's fields as they stand in JSON, which has lists for tuples."""
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    return {name: kind if isinstance(kind, type) and kind in KINDS else list for name, kind in kinds.items()}


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean WORD?"``, or all that there is."""
    found = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {found[0]}?" if found else f"; known: {', '.join(sorted(known))}"
