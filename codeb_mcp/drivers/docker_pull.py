"""The engine's pull stream: entries in, fraction and words out. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAX_ENTRY = 1024 * 1024
_LOADED = ("Download complete", "Verifying Checksum")
_DONE = ("Pull complete", "Already exists")


class Entries:
    """Feed it pieces of the stream as they come; it answers the JSON entries that have become whole."""

    def __init__(self) -> None:
        self._raw = bytearray()

    def feed(self, piece: bytes) -> Iterator[Mapping[str, Any]]:
        """Entries completed by this piece; raises ValueError when the stream is none of an engine."""
        self._raw += piece
        *whole, rest = self._raw.split(b"\n")
        if len(rest) > MAX_ENTRY:
            raise ValueError("endless entry")
        self._raw = bytearray(rest)
        for line in whole:
            if line.strip():
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError("not an entry")
                yield entry


@dataclass(slots=True)
class _Layer:
    size: int | None = None
    loaded: float = 0.0
    unpacked: float = 0.0


class PullMeter:
    """How far a pull is. A layer counts twice, for its download and for its unpacking, weighed by its size.

    `digest` is what the registry said it delivered, once it has; `complete` whether the engine said it is all here.
    """

    def __init__(self) -> None:
        self.digest: str | None = None
        self.complete = False
        self._layers: dict[str, _Layer] = {}
        self._best: float | None = None

    def feed(self, entry: Mapping[str, Any]) -> None:
        """Take in one entry."""
        status, name = str(entry.get("status", "")), entry.get("id")
        if status.startswith("Digest: "):
            self.digest = status.removeprefix("Digest: ").strip()
        elif status.startswith("Status: "):
            self.complete = True
        elif name and not status.startswith("Pulling from"):
            self._feed_layer(self._layers.setdefault(str(name), _Layer()), status, entry.get("progressDetail") or {})

    def _feed_layer(self, layer: _Layer, status: str, detail: Mapping[str, Any]) -> None:
        current, total = detail.get("current"), detail.get("total")
        if status == "Downloading" and total:
            layer.size, layer.loaded = total, min(1.0, (current or 0) / total)
        elif status == "Extracting" and total:
            layer.loaded, layer.unpacked = 1.0, min(1.0, (current or 0) / total)
        elif status in _LOADED:
            layer.loaded = 1.0
        elif status in _DONE:
            layer.loaded = layer.unpacked = 1.0

    @property
    def fraction(self) -> float | None:
        """0..1, never less than before; None while no size is known."""
        if self.complete:
            return 1.0
        sizes = [layer.size for layer in self._layers.values() if layer.size]
        if not sizes:
            return self._best
        usual = sum(sizes) / len(sizes)
        total = sum(2 * (layer.size or usual) for layer in self._layers.values())
        done = sum((layer.size or usual) * (layer.loaded + layer.unpacked) for layer in self._layers.values())
        self._best = max(self._best or 0.0, round(done / total, 4))
        return self._best

    @property
    def words(self) -> str:
        """For people: how much of it is here."""
        if self.complete:
            return "the image is here"
        here = sum(1 for layer in self._layers.values() if layer.unpacked == 1.0)
        loaded = sum((layer.size or 0) * layer.loaded for layer in self._layers.values()) / 1e6
        size = sum(layer.size or 0 for layer in self._layers.values()) / 1e6
        return f"{here} of {len(self._layers)} layers, {loaded:.1f} of {size:.1f} MB" if self._layers else "asking"
