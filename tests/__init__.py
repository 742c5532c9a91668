"""Tests of codeb_mcp: unit, contract, faces, crash and end to end. `tests/lab` starts the real parts."""
