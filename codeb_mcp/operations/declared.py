"""The modules that declare operations; a new one is added here."""

from __future__ import annotations

from importlib import import_module

MODULES = (
    "access",
    "adoption",
    "audits",
    "databases",
    "deploys",
    "domain_reads",
    "domains",
    "env",
    "env_reads",
    "health",
    "logs",
    "members",
    "placing",
    "ports",
    "previews",
    "projects",
    "removal",
    "repair",
    "runs_api",
    "server_checks",
    "server_setup",
    "servers",
    "slots",
    "streaming",
    "workflow",
)


def load() -> None:
    """Import them all, which fills the catalog."""
    for name in MODULES:
        import_module(f"codeb_mcp.operations.{name}")
