"""`python -m hetero_infer` is the `hetero-infer` command."""

import sys

from hetero_infer.cli import main

sys.exit(main())
