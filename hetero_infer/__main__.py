"""`python -m hetero_infer` is the `hetero-infer` command."""

import sys

from hetero_infer.ctrl_c import end_with_one_line


def main() -> int:
    end_with_one_line()
    from hetero_infer.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
