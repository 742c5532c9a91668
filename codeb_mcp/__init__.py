"""A self-hosted deployment control plane that people and agents can trust."""

__version__ = "0.1.0"
