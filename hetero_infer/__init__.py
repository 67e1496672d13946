"""hetero-infer: serve one LLM over a pipeline of unlike devices, planned with a proof."""

__version__ = "0.1.0"
