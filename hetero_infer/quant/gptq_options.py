"""GPTQ's options, apart from `gptq.py` so that a shard can be named without importing auto-gptq."""

DAMPING = 0.01  # share of the Hessian's mean diagonal that is added to its diagonal
SYMMETRIC = False
