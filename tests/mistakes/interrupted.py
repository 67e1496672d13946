"""The `hetero-infer` command with a Ctrl-C at a chosen moment: a signal to itself, as a terminal sends it.

    python -m tests.mistakes.interrupted import:torch plan -c run.toml
    python -m tests.mistakes.interrupted call:os:replace plan -c run.toml

The first sends it when a module is about to be imported, the second when a function is about to be called.
"""

import importlib
import importlib.abc
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class BeforeImport(importlib.abc.MetaPathFinder):
    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == self.module:
            press()
        return None


def press_before_call(module: str, name: str) -> None:
    *outer, last = name.split(".")
    owner: Any = importlib.import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    original = getattr(owner, last)

    def pressed(*args: Any, **kwargs: Any) -> Any:
        press()
        return original(*args, **kwargs)

    setattr(owner, last, pressed)


def main() -> None:
    kind, _, what = sys.argv[1].partition(":")
    if kind == "import":
        sys.meta_path.insert(0, BeforeImport(what))
    else:
        press_before_call(*what.split(":"))
    sys.argv = ["hetero-infer", *sys.argv[2:]]
    runpy.run_module("hetero_infer", run_name="__main__")


if __name__ == "__main__":
    main()
