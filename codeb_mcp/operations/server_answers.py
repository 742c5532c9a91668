"""What a server says of itself: one command that asks many questions, because each command there costs a session.

A question that hangs, or answers too much, would take all others with it: then each is asked by itself.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from codeb_mcp.drivers.hosts import Host
from codeb_mcp.model.errors import DeadlineExceeded, DriverRefused
from codeb_mcp.model.server import ServerRole

ASK_SECONDS = 10.0
MISSING = 127
"""The exit status of a command that is not there, as shells have it."""
# ss asks for listening sockets only; who reads /proc/net/tcp waits until the kernel has looked at all connections. Files of a
# few lines are read without a process, and clusters are where pg_lsclusters, which is slow, looks for them.
SCRIPT = r"""
mark=$1
shift
for question in "$@"; do
  printf '\n%s %s\n' "$mark" "$question"
  case $question in
    clock) date +%s.%N ;;
    user) id -un ;;
    listeners) ss -Htln || grep -h ' 0A ' /proc/net/tcp $([ ! -r /proc/net/tcp6 ] || echo /proc/net/tcp6) ;;
    sshd)
      [ -r /etc/ssh/sshd_config ] &&
        { ! grep -qi '^[[:space:]]*include' /etc/ssh/sshd_config || cat /etc/ssh/sshd_config.d/*.conf
          cat /etc/ssh/sshd_config; } 2>/dev/null | head -c 200000 ;;
    firewall)
      if nft list table inet codeb >/dev/null 2>&1; then echo active
      elif [ -e /etc/codeb/firewall.nft ]; then echo kept; else echo none; fi ;;
    caddy) caddy version ;;
    system) while IFS= read -r line; do echo "$line"; done </etc/os-release ;;
    kernel) read -r line </proc/sys/kernel/osrelease && echo "$line" ;;
    disk) df -P -B1 / /opt /var ;;
    rsync) rsync --version ;;
    postgresql) pg_isready -h 127.0.0.1 -p 5432 ;;
    clusters)
      for path in /etc/postgresql/*/*/; do
        path=${path#/etc/postgresql/}
        [ "$path" = '*/*/' ] || echo "${path%%/*}"
      done ;;
    redis) redis-cli -h 127.0.0.1 -p 6379 ping 2>&1 ;;
    redis_version) redis-server --version ;;
    *) false ;;
  esac </dev/null 2>/dev/null
  printf '\n%s %s\n' "$mark" "$?"
done
"""
ALWAYS = ("clock", "user", "listeners", "sshd", "system", "kernel", "disk", "firewall")
"""The clock first: what it says is from a moment between sending and the end."""
BY_ROLE: dict[ServerRole, tuple[str, ...]] = {
    ServerRole.APPLICATION: ("caddy",),
    ServerRole.STREAMING: (),
    ServerRole.DATABASE: ("postgresql", "clusters", "redis", "redis_version"),
    ServerRole.BACKUP: ("rsync",),
}


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: the exit status, what was printed, and when it was asked and answered (seconds since 1970, our clock)."""

    status: int
    text: str
    asked: float
    answered: float

    @property
    def ok(self) -> bool:
        """Whether the question could be answered."""
        return self.status == 0


class Answers:
    """The answers of one server. `gather` asks for all; `to` gives one, and asks for it when it is not there."""

    def __init__(self, host: Host, role: ServerRole) -> None:
        self._host = host
        self._role = role
        self._said: dict[str, Said] = {}

    async def gather(self) -> None:
        """Ask all questions of the role at once; raises what `Host.run` raises when the server cannot be asked at all."""
        try:
            self._said.update(await self._asked([*ALWAYS, *BY_ROLE[self._role]]))
        except (DeadlineExceeded, DriverRefused) as error:
            late = isinstance(error, DeadlineExceeded) and error.detail.get("inDoubt")
            if not late and error.detail.get("reason") != "too_large":
                raise
            # It can be reached, and one of the questions is to blame.
            await self.to("user")

    async def to(self, question: str, *, anew: bool = False) -> Said:
        """The answer to one question; `anew` asks for it again, alone."""
        if anew or question not in self._said:
            self._said.update(await self._asked([question]))
        return self._said[question]

    async def _asked(self, questions: Sequence[str]) -> dict[str, Said]:
        mark = secrets.token_hex(16)
        asked = time.time()
        done = await self._host.run(["sh", "-c", SCRIPT, "sh", mark, *questions], timeout_seconds=ASK_SECONDS)
        answered = time.time()
        parts = done.stdout.decode("utf-8", "replace").split(f"\n{mark} ")[1:]
        found = {}
        for begun, ended in zip(parts[::2], parts[1::2], strict=False):
            name, _, text = begun.partition("\n")
            found[name] = Said(int(ended), text, asked, answered)
        return {name: found.get(name, Said(done.status or 1, "", asked, answered)) for name in questions}
