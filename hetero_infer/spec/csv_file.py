"""CSV below lines of ``# key = value``, the first of which says the format."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hetero_infer.spec.errors import InputError, located
from hetero_infer.spec.fields import KINDS, nearest, read_value
from hetero_infer.spec.files import read_text, write_atomically

FORMAT = 1

Row = TypeVar("Row")


def write_csv(path: Path, header: Mapping[str, str], columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    stream = io.StringIO()
    for key, value in {"format": str(FORMAT), **header}.items():
        stream.write(f"# {key} = {value}\n")
    writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, stream.getvalue())


def read_csv(
    path: Path, what: str, columns: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], Row]
) -> tuple[dict[str, str], list[Row]]:
    """The header without its format, and what `parse` makes of each row's values.

    `columns` are the names and their types. An `InputError` names the column or the row that is refused.
    """
    lines = read_text(path, what).splitlines()
    header = dict(_header_entry(line) for line in lines if line.startswith("#"))
    if header.pop("format", None) != str(FORMAT):
        raise InputError(f"{what} {path}: its first line must read '# format = {FORMAT}'")
    return header, read_rows((line for line in lines if not line.startswith("#")), f"{what} {path}", columns, parse)


def read_rows(
    lines: Iterable[str], where: str, columns: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], Row]
) -> list[Row]:
    """What `parse` makes of each row's values, below a line with the names of the columns."""
    try:
        names, *body = list(csv.reader(lines)) or [[]]
    except csv.Error as error:
        raise InputError(f"{where}: not CSV ({error})") from error
    for name in names:
        if name not in columns:
            raise InputError(f"{where}: the column {name} is not known{nearest(name, columns)}")
    for name in columns:
        if name not in names:
            raise InputError(f"{where}: the column {name} is missing")
        if names.count(name) > 1:
            raise InputError(f"{where}: the column {name} stands there twice")
    rows = []
    for number, cells in enumerate(filter(None, body), 1):
        with located(f"{where}, row {number}"):
            if len(cells) != len(names):
                raise InputError(f"{len(cells)} values for {len(names)} columns")
            rows.append(
                parse({name: _value(cell, columns[name], name) for name, cell in zip(names, cells, strict=True)})
            )
    return rows


def _value(text: str, kind: Any, name: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        wanted = KINDS.get(kind) or f"one of {', '.join(kind)}"
        raise InputError(f"{name} = {text!r} is not {wanted}") from None
    return read_value(value, kind, name) if kind in KINDS else value


def _header_entry(line: str) -> tuple[str, str]:
    key, _, value = line.lstrip("# ").partition("=")
    return key.strip(), value.strip()
