"""The indicators ω[layer, choice], in nats per token: a file for each method, `table.py` makes the table."""
