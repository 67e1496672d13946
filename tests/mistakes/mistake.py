"""`Mistake`: one thing done wrong in a run that was right, and how it must be told. Here are the ways to do it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECK = ("check", "out/plan.json")
PLAN = ("plan",)
SIMULATE = ("simulate", "out/plan.json")
QUANTIZE = ("quantize", "out/plan.json")


@dataclass(frozen=True)
class Mistake:
    """`spoil` is given the folder of the run; `command` meets the mistake, paths in it being relative to that folder.

    `says` is a part of the line that tells this mistake and no other; `names` is the file or key that is at fault.
    """

    says: str
    names: str
    spoil: Callable[[Path], object]
    command: tuple[str, ...] = CHECK
    exit_code: int = 2

    def __str__(self) -> str:
        return f"{self.names}: {self.says}"


def replaced(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Every `old` in a text file becomes `new`; it must be there."""

    def spoil(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text, f"{file} has no {old!r}"
        (folder / file).write_text(text.replace(old, new))

    return spoil


def edited(file: str, edit: Callable[[Any], object]) -> Callable[[Path], None]:
    """A JSON file's content is changed in place by `edit`."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        edit(content)
        (folder / file).write_text(json.dumps(content))

    return spoil


def written(file: str, content: str | bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def removed(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def made_a_folder(file: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).mkdir()

    return spoil


def both(*spoils: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for one in spoils:
            one(folder)

    return spoil
