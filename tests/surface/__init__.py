"""The surface that clients see, as reviewed files."""
