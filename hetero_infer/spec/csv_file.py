"""CSV below lines of ``# key = value``, the first of which says the format."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hetero_infer.spec.errors import InputError
from hetero_infer.spec.files import read_text, write_atomically

FORMAT = 1

Row = TypeVar("Row")


def write_csv(path: Path, header: Mapping[str, str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    stream = io.StringIO()
    for key, value in {"format": str(FORMAT), **header}.items():
        stream.write(f"# {key} = {value}\n")
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, stream.getvalue())


def read_csv(path: Path, what: str, parse: Callable[[Mapping[str, str]], Row]) -> tuple[dict[str, str], list[Row]]:
    """The header without its format, and what `parse` makes of each row; an `InputError` names the row it refuses."""
    lines = read_text(path, what).splitlines()
    header = dict(_header_entry(line) for line in lines if line.startswith("#"))
    if header.pop("format", None) != str(FORMAT):
        raise InputError(f"{what} {path}: its first line must read '# format = {FORMAT}'")
    rows = []
    for number, entry in enumerate(csv.DictReader(line for line in lines if not line.startswith("#")), 1):
        try:
            rows.append(parse(entry))
        except InputError as error:
            raise InputError(f"{what} {path}, row {number}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{what} {path}, row {number}: {error!r} in {entry}") from error
    return header, rows


def _header_entry(line: str) -> tuple[str, str]:
    key, _, value = line.lstrip("# ").partition("=")
    return key.strip(), value.strip()
