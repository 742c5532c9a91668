"""Whether the proxy sees the traffic flags. One that cannot look them up takes them for absent and sends to blue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from codeb_mcp.drivers.protocols import Answer
from codeb_mcp.model.errors import DriverRefused, DriverUnavailable
from codeb_mcp.model.names import Slot
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.places import Place
from codeb_mcp.settings import Settings

UNSEEN = "flags_unseen"
"""The `reason` of the refusal, for those who have to undo more than usual."""
LOOK_SECONDS = 5.0
LOOK_TRIES, LOOK_PAUSE_SECONDS = 5, 0.1
_PASS, _LOOK = 0o001, 0o005


def hidden_flags(settings: Settings) -> Iterator[str]:
    """What keeps other users, one of whom the proxy may run as, from the traffic flags: words for an operator, none when all
    is well. A folder that is not made yet hides nothing."""
    flags = settings.traffic.resolve()
    for folder, needed in ((flags, _LOOK), *((parent, _PASS) for parent in flags.parents)):
        mode = _mode(folder)
        if mode is not None and mode & needed != needed:
            yield (
                f"{folder} has mode {mode:04o}: a proxy that runs as another user cannot see which slot is live in {flags}; "
                f"run `chmod o+{'rx' if needed == _LOOK else 'x'} {folder}`"
            )


def _mode(folder: Path) -> int | None:
    try:
        return folder.stat().st_mode & 0o777
    except OSError:
        return None


def advice(settings: Settings) -> str:
    """What to do about a proxy that does not see the flags."""
    found = next(hidden_flags(settings), None)
    return (
        f"{found}."
        if found
        else f"Let the user that the proxy runs as look into {settings.traffic}: permissions of it and of every folder above "
        "it, and what a sandbox of its service hides."
    )


def unseen(answer: Answer, live: Slot | None) -> bool:
    """Whether a slot answered the public address that the flags, which say `live`, send nothing to."""
    return answer.slot is not None and answer.slot != live


async def require_flags_seen(services: Services, place: Place, key: str, host: str, path: str) -> None:
    """Raise DriverRefused with the reason `UNSEEN` when the public address is answered by another slot than the flags say;
    DriverUnavailable when nobody can be asked. An application that answers late is none that was idle a moment ago."""
    live = await place.drivers.traffic.live(key)
    loop = asyncio.get_running_loop()
    for left in reversed(range(LOOK_TRIES)):
        started = loop.time()
        answer = await place.drivers.prober.public(host, path, timeout_seconds=LOOK_SECONDS)
        if unseen(answer, live):
            raise _refusal(services.settings, host, answer, live)
        if answer.status is not None or loop.time() - started >= LOOK_SECONDS:
            return
        if left:
            await asyncio.sleep(LOOK_PAUSE_SECONDS)
    raise DriverUnavailable(
        f"{host} cannot be asked who answers it: {answer.problem}", hint="See that the proxy is up.", host=host
    )


def _refusal(settings: Settings, host: str, answer: Answer, live: Slot | None) -> DriverRefused:
    return DriverRefused(
        f"{host} is answered by slot {answer.slot}, but its traffic goes to {live or 'nothing'}: the proxy does not see the "
        f"flags in {settings.traffic}",
        hint=advice(settings),
        reason=UNSEEN,
        host=host,
        folder=str(settings.traffic),
    )
