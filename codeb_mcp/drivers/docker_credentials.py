"""Logins for image registries, from a file in Docker's own `config.json` format."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from codeb_mcp.model.errors import RegistryDamaged

Credentials = Callable[[str], tuple[str, str] | None]
HUB = "docker.io"
HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io")
"""Under which keys `docker login` keeps the login of Docker Hub (docker/cli, `cli/config`)."""


def credentials_from(path: Path | None) -> Credentials:
    """User and password per image registry; None for a registry without a login. The file is read at every question, so a new
    login counts at once. Raises RegistryDamaged for a file that cannot be read or keeps the login elsewhere."""

    def find(host: str) -> tuple[str, str] | None:
        if path is None:
            return None
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            return _login(path, host, config)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise RegistryDamaged(
                f"the credentials file {path} cannot be read: {type(error).__name__}", hint="Repair or remove it."
            ) from None

    return find


def _login(path: Path, host: str, config: Mapping[str, Any]) -> tuple[str, str] | None:
    keys = (host, f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/", *(HUB_KEYS if host == HUB else ()))
    auths = config.get("auths", {})
    entry = next((auths[key] for key in keys if key in auths), None)
    if entry is None:
        return None
    if "auth" in entry:
        user, _, password = base64.b64decode(entry["auth"], validate=True).decode("utf-8").partition(":")
    else:
        user, password = entry.get("username", ""), entry.get("password", "")
    if user and password:
        return user, password
    if config.get("credsStore") or config.get("credHelpers", {}).get(host):
        raise RegistryDamaged(
            f"{path} names a login for {host}, but a credential helper keeps its password",
            hint="Log in on a machine without a helper, or write `auth` (base64 of user:password) into the file.",
        )
    return None
