"""What a release would be started with: by it two deploys of one image are told apart."""

from __future__ import annotations

import hashlib

from codeb_mcp.model.errors import RegistryDamaged
from codeb_mcp.model.names import Environment
from codeb_mcp.model.project import Project
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.envfile import read_env


def would_start(services: Services, project: Project, name: str, environment: Environment, *, skipped: bool) -> str:
    """A digest of all that a container of the project called `name` would be started and proven with, besides its image;
    `skipped`: it would not be proven. Variables go into it by their keyed hash only."""
    settings = project.settings
    try:
        _, env_hash = read_env(services.settings, name, environment.value)
    except RegistryDamaged:
        env_hash = "unreadable"  # what is wrong with it is for the run itself to tell
    parts = (
        settings.container_port,
        settings.pull_policy,
        settings.limits.model_dump_json(),
        settings.health_check.model_dump_json(),
        skipped,
        env_hash,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()
