"""The installation's two keys around variables, in `keys/`: one seals the histories, one opens the copies on the Backup server.

`env.key`: 32 random bytes; from it come the key of the log's chain and that of value hashes. `env.agekey`: an age identity,
with its public half in `env.agekey.pub`. A key that is missing although something was written with it is never made anew.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from codeb_mcp.model.errors import RegistryDamaged
from codeb_mcp.registry.disk import Disk, put, read_file, refusals
from codeb_mcp.registry.lock import hold

_WAIT_SECONDS = 10.0
_LARGEST = 4096


class EnvKeys:
    """The keys below one root. Blocking, used from threads; each is made at its first use, by one process only."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self._root = str(root.absolute())
        self._folder = f"{self._root}/keys"
        self._disk = disk or Disk()
        self._known: dict[str, bytes] = {}

    def log_key(self) -> bytes:
        """What seals the entries of the histories; raises RegistryDamaged when it is lost or damaged."""
        return self._derived(b"codeb env log")

    def fingerprint(self, *parts: bytes) -> str:
        """A keyed hash of the parts, as 64 hexadecimal digits: nobody without the key can try out values."""
        digest = hmac.new(self._derived(b"codeb env value"), digestmod=hashlib.sha256)
        for part in parts:
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()

    def identity(self, make: Callable[[], str], recipient: Callable[[str], str]) -> str:
        """The age identity (`AGE-SECRET-KEY-…`); `make` answers a new one for the first use, `recipient` its public half."""
        path = f"{self._folder}/env.agekey"
        if path not in self._known:
            public = f"{path}.pub"
            with refusals("read the key of the copies"), self._alone():
                text = self._read_or(path, public, lambda: self._new_key(path, make())).decode().strip()
                if not os.path.lexists(public):
                    put(self._disk, public, f"{recipient(text)}\n".encode())
            self._known[path] = text.encode()
        return self._known[path].decode()

    def _derived(self, purpose: bytes) -> bytes:
        path = f"{self._folder}/env.key"
        if path not in self._known:
            with refusals("read the key of the histories"):
                raw = self._present(path)
                if raw is None:
                    with self._alone():
                        raw = self._read_or(path, next(self._histories(), None), self._made(path))
            try:
                self._known[path] = bytes.fromhex(raw.decode())
            except ValueError:
                self._known[path] = b""
            if len(self._known[path]) != 32:
                del self._known[path]
                raise RegistryDamaged("the key of the env histories is damaged", hint="Restore it.", path=path)
        return hmac.new(self._known[path], purpose, hashlib.sha256).digest()

    def _new_key(self, path: str, key: str) -> bytes:
        put(self._disk, path, f"{key}\n".encode())
        return key.encode()

    def _made(self, path: str) -> Callable[[], bytes]:
        return lambda: self._new_key(path, secrets.token_hex(32))

    @staticmethod
    def _present(path: str) -> bytes | None:
        try:
            return read_file(path, _LARGEST)[0]
        except FileNotFoundError:
            return None
        except ValueError:
            return b""

    def _read_or(self, path: str, used: str | None, make: Callable[[], bytes]) -> bytes:
        """The key; made when nothing (`used`) shows that there was one."""
        raw = self._present(path)
        if raw is not None:
            return raw
        if used is None or not os.path.lexists(used):
            return make()
        raise RegistryDamaged(
            f"{os.path.basename(path)} is missing, although {used} was written with it",
            hint="Restore it from where you keep copies of `keys/`; docs/ENV.md says what to do without one.",
            path=path,
        )

    def _histories(self) -> Iterator[str]:
        for path in Path(self._root, "env-backup").glob("*/*/backup-log.json"):
            yield str(path)

    def _alone(self) -> AbstractContextManager[None]:
        self._disk.make_folder(self._folder, durable=True)
        return hold(f"{self._folder}/.lock", wait_seconds=_WAIT_SECONDS)
