"""A disk whose power can be cut: what was never synced may be there afterwards, or not, or in part.

It works on a real folder and keeps a model beside it of what is durable. A name in a folder may, after the cut, be any
of the things it was since the folder was last synced; a file that was not synced may hold any part of its content. That
is more than any real file system does to us, except that a rename within one folder is one change.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from codeb_mcp.registry.disk import Disk


class PowerCut(BaseException):
    """The machine is off."""


class _File:
    """Content, and whether it would survive."""

    def __init__(self, data: bytes, *, durable: bool) -> None:
        self.data = data
        self.durable = durable


_Entry = _File | str | None
"""What a name stands for: a file, a folder (its path) or nothing."""


class VanishingDisk(Disk):
    """`cut_after` changes, the power goes."""

    def __init__(self, root: Path) -> None:
        self.root = str(root.absolute())
        self.left: int | None = None
        self.changes = 0
        self._names: dict[str, dict[str, list[_Entry]]] = {self.root: {}}

    def know_what_is_there(self) -> None:
        """Begin with the files of the folder, all of them durable."""
        for folder, folders, names in os.walk(self.root):
            inside = self._names.setdefault(folder, {})
            inside.update({name: [f"{folder}/{name}"] for name in folders})
            inside.update({name: [_File(Path(folder, name).read_bytes(), durable=True)] for name in names})

    def make_folder(self, path: str, *, durable: bool) -> None:
        if path == os.path.dirname(self.root) or os.path.isdir(path):
            return
        self.make_folder(os.path.dirname(path), durable=durable)
        self._count()
        os.mkdir(path, 0o700)
        self._names.setdefault(path, {})
        if path != self.root:
            self._become(path, path)
            if durable:
                self.sync_folder(os.path.dirname(path))

    def create(self, path: str, data: bytes, *, durable: bool) -> None:
        self._count()
        super().create(path, data, durable=False)
        file = _File(data, durable=False)
        self._become(path, file)
        if durable:
            self._count()
            file.durable = True

    def sync_file(self, path: str) -> None:
        self._count()
        file = self._now(path)
        if isinstance(file, _File):
            file.durable = True

    def replace(self, source: str, target: str) -> None:
        self._count()
        super().replace(source, target)
        self._become(target, self._now(source))
        self._become(source, None)

    def link(self, source: str, target: str) -> None:
        self._count()
        taken = os.path.lexists(target)
        super().link(source, target)
        if not taken:
            self._become(target, self._now(source))

    def unlink(self, path: str) -> None:
        self._count()
        super().unlink(path)
        self._become(path, None)

    def sync_folder(self, path: str) -> None:
        self._count()
        names = self._names[path]
        self._names[path] = {name: entries[-1:] for name, entries in names.items()}

    def after_the_cut(self, target: Path, chance: random.Random) -> None:
        """Write into `target` what may be found when the power is back."""
        target.mkdir(mode=0o700)
        self._restore(self.root, target, chance)

    def _restore(self, folder: str, target: Path, chance: random.Random) -> None:
        for name, entries in self._names[folder].items():
            entry = chance.choice(entries)
            if isinstance(entry, str):
                (target / name).mkdir(mode=0o700)
                self._restore(entry, target / name, chance)
            elif entry is not None:
                data = entry.data
                if not entry.durable:
                    data = chance.choice([data, b"", data[: len(data) // 2], b"\0" * len(data)])
                (target / name).write_bytes(data)

    def _become(self, path: str, entry: _Entry) -> None:
        folder, name = os.path.split(path)
        self._names[folder].setdefault(name, [None]).append(entry)

    def _now(self, path: str) -> _Entry:
        folder, name = os.path.split(path)
        return self._names[folder][name][-1]

    def _count(self) -> None:
        self.changes += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise PowerCut
