"""The runtime: DeepSpeed's pipeline engine, extended by a plan's partition, a KV cache and a decode loop.

DeepSpeed is imported in this package and nowhere else.
"""

import os

# A dry run has no device, and DeepSpeed looks for one when it is imported and says on stdout what it found.
# For a stage `device.join_process_group` says which it is.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
