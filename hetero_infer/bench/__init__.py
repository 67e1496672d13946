"""Measurements that print their tables and keep them: `hetero-infer bench planner`."""
