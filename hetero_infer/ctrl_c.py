"""Ctrl-C ends a command with one line, wherever it is: also in the middle of an import.

Entry points call `end_with_one_line` before they import anything that takes long. A supervisor sets handlers of its own
later.
"""

import os
import signal
import sys
from types import TracebackType
from typing import Any

LINE = "hetero-infer: interrupted"
AGAIN_S = 0.01


def end_with_one_line(exit_code: int = 1) -> None:
    came = False

    def receive(*signal_and_frame: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not came:  # else it may be any error by now: C code that is being imported turns one into another
            return sys.__excepthook__(kind, error, trace)
        print(LINE, file=sys.stderr, flush=True)
        os._exit(exit_code)

    def unraisablehook(what: Any) -> None:
        """Python drops what is raised in a callback or `__del__`; a moment later it is raised again."""
        if issubclass(what.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        else:
            sys.__unraisablehook__(what)

    signal.signal(signal.SIGINT, receive)
    signal.signal(signal.SIGALRM, receive)
    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook
