"""Benchmarks: commands, not tests. Each prints a table, and JSON with `--json`."""
