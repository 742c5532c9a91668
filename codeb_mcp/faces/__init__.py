"""Faces translate between callers and the catalog; they know no operation by name."""
