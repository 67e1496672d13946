"""The runtime: DeepSpeed's pipeline engine, extended by a plan's partition, a KV cache and a decode loop.

DeepSpeed is imported in this package and nowhere else.
"""
