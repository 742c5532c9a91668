"""Looking for damage and mending it, always by writing a new version through the normal protocol."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from codeb_mcp.model.errors import NotFound, RegistryDamaged
from codeb_mcp.registry.disk import read_file
from codeb_mcp.registry.documents import ADOPTED_VERSION, MAX_BYTES, check_key, parse, prepare, split
from codeb_mcp.registry.folder import RegistryFolder, document_keys
from codeb_mcp.registry.leases import Leases
from codeb_mcp.registry.store import Change, Document

_SERIAL = re.compile(rb'"serial": ?([1-9][0-9]{0,17})\s*\}\s*$')


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that cannot be trusted. `key` is a document key, or `leases/<name>` for a lease. `reached` is the highest
    serial that is known to have been written: above `last_good_serial`, changes are lost."""

    key: str
    path: str
    problem: str
    last_good_serial: int | None
    reached: int = 0


class Repair:
    """Damage of one registry folder. Blocking; takes the registry's lock itself."""

    def __init__(self, folder: RegistryFolder, leases: Leases, clock: Callable[[], datetime]) -> None:
        self._folder = folder
        self._leases = leases
        self._clock = clock

    def examine(self) -> list[Damage]:
        """All damage, sorted by key; every document and lease is read."""
        with self._folder.locked("examine the registry"):
            generations = self._folder.versions.generations
            keys = sorted({*document_keys(self._folder.root, ""), *generations.all_keys()})
            found = [self._document(key) for key in keys]
            found += [self._lease(name) for name in self._leases.names()]
        return [damage for damage in found if damage is not None]

    def restore(self, key: str, serial: int) -> int:
        """Make that kept version the newest; raises `NotFound` when it cannot be read."""
        with self._folder.locked(f"restore {check_key(key)}"):
            try:
                doc = self._folder.versions.read_generation(key, serial)
            except (FileNotFoundError, ValueError) as error:
                raise NotFound(
                    f"version {serial} of {key} is not kept or cannot be trusted",
                    hint="Look at the list of damage for the newest version that is good.",
                    key=key,
                    serial=serial,
                ) from error
            return self._replace(key, doc)

    def kept(self, key: str) -> list[Document]:
        """All kept versions that can be read, newest first."""
        with self._folder.locked(f"look at {check_key(key)}"):
            versions = self._folder.versions
            found: list[Document] = []
            for generation in reversed(versions.generations.known(key)):
                with contextlib.suppress(OSError, ValueError):
                    found.append(versions.read_generation(key, generation.serial))
            return found

    def replace(self, key: str, doc: Document) -> int:
        """Write this document over whatever is there."""
        with self._folder.locked(f"replace {check_key(key)}"):
            return self._replace(key, doc)

    def replace_lease(self, name: str) -> None:
        """Free an unreadable lease."""
        with self._folder.locked(f"replace the lease {name}"):
            if self._lease(name) is not None:
                self._leases.replace_damaged(name)

    def forget(self, prefix: str, older_than_seconds: float) -> int:
        """Drop the memory of documents that were deleted long ago."""
        folder = self._folder
        with folder.locked("forget deleted documents"):
            gone = [key for key in folder.versions.generations.all_keys() if key.startswith(prefix)]
            return sum(
                folder.versions.generations.forget(key, older_than_seconds=older_than_seconds)
                for key in gone
                if not os.path.lexists(folder.versions.path(key))
            )

    def _replace(self, key: str, doc: Document) -> int:
        path = self._folder.versions.path(key)
        reached = self._folder.versions.generations.newest(key)
        serial = (
            max(reached.serial if reached else 0, self._folder.versions.generations.floor(key), _claimed_serial(path))
            + 1
        )
        if os.path.lexists(path):
            aside = f"{self._folder.root}/.damaged"
            self._folder.disk.make_folder(aside, durable=True)
            stamp = self._clock().strftime("%Y%m%dT%H%M%S.%fZ")
            self._folder.disk.link(path, f"{aside}/{key.replace('/', '+')}.{stamp}")
            self._folder.disk.sync_folder(aside)
        versions = self._folder.versions
        self._folder.disk.make_folder(os.path.dirname(path), durable=True)
        versions.write(key, prepare(Change(key, doc, 0)).content(versions.lineage, serial), serial, None)
        self._folder.disk.sync_folder(os.path.dirname(path))
        versions.written(key, serial)
        return serial

    def _document(self, key: str) -> Damage | None:
        try:
            self._folder.versions.forget_cached(key)
            self._folder.versions.current(key)
        except RegistryDamaged as error:
            detail = error.detail
            return self._damage(key, str(detail["problem"]), detail["lastGood"])
        except OSError as error:
            return self._damage(key, f"cannot be read: {error}", self._folder.versions.last_good(key))
        return None

    def _damage(self, key: str, problem: str, good: int | None) -> Damage:
        versions = self._folder.versions
        newest = versions.generations.newest(key)
        told = _told_serial(versions.path(key), versions.lineage)
        return Damage(key, versions.path(key), problem, good, max(newest.serial if newest else 0, told))

    def _lease(self, name: str) -> Damage | None:
        try:
            self._leases.holding(name)
        except RegistryDamaged as error:
            return Damage(f"leases/{name}", str(error.detail["path"]), error.message, None)
        except OSError as error:
            return Damage(f"leases/{name}", "", f"cannot be read: {error}", None)
        return None


def _told_serial(path: str, lineage: str) -> int:
    """The serial in what is left of a document of ours; 0 when it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        data = read_file(path, MAX_BYTES)[0]
        found = _SERIAL.search(data)
        if found and lineage.encode() in data:
            return int(found[1])
    return 0


def _claimed_serial(path: str) -> int:
    """The serial that the present file claims, so that the new one is above it whatever it is worth."""
    with contextlib.suppress(OSError, ValueError):
        return split(parse(read_file(path, MAX_BYTES)[0]))[2]
    return ADOPTED_VERSION
