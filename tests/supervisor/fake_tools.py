"""Stands in for `hetero-infer plan` and `quantize`: copies a plan made before, notes what it was asked to quantise."""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("plan", nargs="?")
    parser.add_argument("-c", type=Path)
    parser.add_argument("-o", type=Path)
    parser.add_argument("--devices")
    args = parser.parse_args()
    folder = args.c.parent
    if args.verb == "plan":
        time.sleep(float(os.environ.get("FAKE_PLANNING_S", "0")))
        if not (folder / "prepared-plan.json").exists():
            print("no plan meets every constraint", file=sys.stderr)
            return 3
        shutil.copy(folder / "prepared-plan.json", args.o)
    else:
        with (folder / "quantised").open("a") as log:
            log.write(f"{args.devices}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
