"""`launch/serve.py`, `batch.py` or `measure.py` (the first argument) as they are, with the fake programs put in."""

import importlib
import os
import sys
from pathlib import Path

import hetero_infer
from hetero_infer.supervisor.setup import Commands, Limits

HERE = Path(__file__).parent
TOOLS = (sys.executable, str(HERE / "fake_tools.py"))
COMMANDS = Commands((*TOOLS, "plan"), (*TOOLS, "quantize"), (sys.executable, str(HERE / "fake_worker.py")))

if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent.parent / "launch"))
    limits = Limits(join_s=float(os.environ.get("FAKE_JOIN_S", "20")))
    hetero_infer.__version__ = os.environ.get("FAKE_VERSION", hetero_infer.__version__)
    verbs = {"serve", "batch", "measure"} & set(sys.argv)  # a launcher may put --local_rank first
    sys.argv.remove(verb := verbs.pop())
    sys.exit(importlib.import_module(verb).main(COMMANDS, limits))
