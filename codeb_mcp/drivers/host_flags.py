"""The traffic flags of a server: the same files and the same order as `flags.py` keeps on this machine.

Each wish is one fixed script under the lock of that folder, so that a link which breaks in the middle leaves the switch done
or not done, whoever else asks there. The words that come from us are its arguments, never part of its text.
"""

from __future__ import annotations

import re

from codeb_mcp.drivers.flags import STATES
from codeb_mcp.drivers.hosts import Finished, Host
from codeb_mcp.model.errors import CodebError, DriverRefused, InsufficientStorage, InvalidRequest, LeaseLost, LockHeld
from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import KEY_PATTERN

SECONDS = 30.0
LOCK_SECONDS = 5
NO_LOCK_FILE = 66
"""flock's own status when it cannot open the lock's file."""
OLD_FENCE, LOCKED, BAD_FENCE = 75, 76, 77

_FENCE = f"""
seen=0
if [ -e "$key.fence" ]; then
  seen=$(cat "$key.fence")
  case $seen in *[!0-9]*|"") exit {BAD_FENCE};; esac
  [ ${{#seen}} -eq 19 ] || exit {BAD_FENCE}
fi
if [ "$fence" -lt "$seen" ]; then echo "$seen"; exit {OLD_FENCE}; fi
if [ "$fence" -gt "$seen" ]; then put "$key.fence" "$(printf '%019d' "$fence")"; fi
"""
# `cat` writes, because the shell's own printf tells a full disk as "I/O error".
_BEGIN = """
set -eu
umask 022
cd -- "$1"
key=$2
put() {
  if [ -n "$2" ]; then printf '%s\\n' "$2" | cat > ".$1.part"; else : > ".$1.part"; fi
  sync ".$1.part"
  mv -fT ".$1.part" "$1"
}
state() { for one in green off blue; do if [ -e "$key.$one" ]; then echo "$one"; return; fi; done; echo none; }
"""
SWITCH = f"""{_BEGIN}
wanted=$3 fence=$4
{_FENCE}
present=$(state)
covered=no
if [ "$present" = green ] && [ -e "$key.off" ]; then covered=yes; fi
if [ "$present" = none ] || [ "$present/$wanted" = off/green ]; then
  put "$key.$wanted" ""
elif [ "$covered/$wanted" = yes/off ]; then
  rm -f "$key.green"
elif [ "$present" != "$wanted" ]; then
  if [ "$covered" = yes ]; then rm -f "$key.off"; sync .; fi
  mv -fT "$key.$present" "$key.$wanted"
fi
sync .
echo "$present"
"""
FORGET = f"""{_BEGIN}
fence=$3
{_FENCE}
rm -f "$key.blue"; rm -f "$key.green"; rm -f "$key.off"
sync .
"""
LOOK = f"""{_BEGIN}
state
"""


class HostTraffic:
    """Implements `Traffic` on a server, for the folder that its proxy looks into. Needs `sh`, `flock` and coreutils there, and
    an account that may write the folder.

    Raises what `Host.run` raises, LeaseLost for an old fence, LockHeld when another process holds the folder for 5 s,
    InsufficientStorage for a full disk, DriverRefused for the rest. When the link broke, `inDoubt` says so: the switch is
    done or not, and asking again is harmless.
    """

    def __init__(self, host: Host, folder: str) -> None:
        self._host = host
        self._folder = folder

    async def live(self, key: str) -> Slot | None:
        """See `Traffic.live`."""
        _check(key)
        done = await self._run(LOOK, f"look up which slot of {key} is live", key)
        return STATES.get(done.stdout.decode().strip()) if done else None

    async def switch(self, key: str, slot: Slot | None, *, fence: int) -> bool:
        """See `Traffic.switch`."""
        _check(key)
        wanted = "off" if slot is None else slot.value
        done = await self._run(SWITCH, f"switch {key} to {wanted}", key, wanted, str(fence))
        if done is None:
            await self._host.make_folder(self._folder, mode=0o755)
            done = await self._run(SWITCH, f"switch {key} to {wanted}", key, wanted, str(fence))
        if done is None:
            raise DriverRefused(f"{self._folder} on {self._host.key} keeps vanishing", hint="See what removes it.")
        return done.stdout.decode().strip() != wanted

    async def forget(self, key: str, *, fence: int) -> None:
        """See `Traffic.forget`."""
        _check(key)
        await self._run(FORGET, f"forget {key}", key, str(fence))

    async def keys(self) -> list[str]:
        """See `Traffic.keys`."""
        names = await self._host.list(self._folder) or []
        parts = [name.rpartition(".") for name in names if not name.startswith(".")]
        return sorted({key for key, _, state in parts if state in STATES})

    async def _run(self, script: str, wish: str, key: str, *words: str) -> Finished | None:
        """How it ended well; None when there certainly is no such folder yet."""
        lock = ["flock", "-E", str(LOCKED), "-w", str(LOCK_SECONDS), f"{self._folder}/.lock"]
        argv = [*lock, "sh", "-c", script, "sh", self._folder, key, *words]
        done = await self._host.run(argv, timeout_seconds=SECONDS)
        if done.ok:
            return done
        if done.status == NO_LOCK_FILE and await self._host.stat(self._folder) is None:
            return None
        raise self._problem(done, wish, key)

    def _problem(self, done: Finished, wish: str, key: str) -> CodebError:
        server = self._host.key
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[-200:]
        if done.status == OLD_FENCE:
            return LeaseLost(
                f"fencing token of {key} on {server} is older than {int(done.stdout or b'0')}",
                hint="Another run has taken over this environment: stop, and look at its operation.",
                key=key,
                server=server,
            )
        if done.status == LOCKED:
            return LockHeld(
                f"another process has held the traffic flags of {server} for {LOCK_SECONDS} s",
                hint="Look for a stopped process there, end it, then repeat the call.",
                server=server,
            )
        if done.status == BAD_FENCE:
            return DriverRefused(
                f"the fence file {key}.fence on {server} is damaged",
                hint="Look at what it holds; remove it when no run on this environment is under way.",
                server=server,
            )
        kind = InsufficientStorage if "No space left" in said or "quota exceeded" in said else DriverRefused
        return kind(
            f"{server} cannot {wish}: {said or f'status {done.status}'}",
            hint=f"Make {self._folder} writable for codeb's user there, then repeat the call.",
            server=server,
        )


def _check(key: str) -> None:
    if not re.fullmatch(KEY_PATTERN, key):
        raise InvalidRequest(f"{key!r:.100} is no environment key", hint="Keys look like shop-production.")
