"""The live env file of an environment: `projects/{project}/.env.{environment}`."""

from __future__ import annotations

from collections.abc import Mapping

from codeb_mcp.model.env import parse
from codeb_mcp.model.errors import RegistryDamaged
from codeb_mcp.registry.env_keys import EnvKeys
from codeb_mcp.settings import Settings


def read_env(settings: Settings, project: str, environment: str) -> tuple[Mapping[str, str], str | None]:
    """The variables and the keyed hash of the file; nothing and None when there is no file.

    Values are taken literally: no interpolation of other variables. Raises RegistryDamaged when the file cannot be read.
    """
    path = settings.projects / project / f".env.{environment}"
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except FileNotFoundError:
        return {}, None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RegistryDamaged(
            f"the env file of {project} {environment} cannot be read: {reason}", hint="Repair the file."
        ) from None
    return parse(text).values, fingerprint(settings, raw)


def fingerprint(settings: Settings, raw: bytes) -> str:
    """The hash by which slots remember their variables. It is keyed, since whoever may look at a slot could otherwise try
    out the values of a short file."""
    return EnvKeys(settings.root).fingerprint(b"file", raw)
