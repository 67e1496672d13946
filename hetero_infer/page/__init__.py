"""A plan as one HTML file: no script, no network, no font but the reader's own."""
