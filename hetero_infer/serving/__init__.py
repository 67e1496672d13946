"""Requests in, completions out: validation, batching, the batch file, the HTTP front. No torch."""
