"""Data and decisions. Nothing here reads a clock, a file or a socket, or rolls dice."""
