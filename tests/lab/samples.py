"""Sample images of one test: made on demand, pushed, and removed at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from tests.lab import images
from tests.lab.daemons import LabError
from tests.lab.engine import Engine


class SampleImages:
    """Image makers bound to an engine, a registry and a repository that is this test's own."""

    def __init__(self, engine: Engine, address: str, name: str) -> None:
        self.engine = engine
        self.address = address
        self.repository = f"{address}/{name}/app"

    async def local(self, version: str = "v1", *, labels: Mapping[str, str] | None = None, **env: str) -> str:
        """An image that is on the engine only; answers its reference."""
        reference = f"{self.repository}:{version}"
        await images.build(self.engine.host, reference, version, labels=labels, **env)
        return reference

    async def pushed(
        self,
        version: str = "v1",
        *,
        labels: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        **env: str,
    ) -> str:
        """An image that is in the registry and no longer on the engine, so that a deploy really pulls it."""
        reference = await self.local(version, labels=labels, **env)
        await images.push(self.engine.host, reference, auth=auth)
        await images.remove(self.engine.host, reference)
        return reference

    def at(self, address: str) -> SampleImages:
        """The same maker for another registry."""
        name = self.repository.removeprefix(f"{self.address}/").removesuffix("/app")
        return SampleImages(self.engine, address, name)

    def remove_all(self) -> None:
        """Take every image of this test's repository, and the containers made from them, off the engine."""
        mine = f"/{self.repository.partition('/')[2]}"
        found = [
            entry for entry in self.engine.call("GET", "/images/json") if any(mine in name for name in _names(entry))
        ]
        identities = {entry["Id"] for entry in found}
        for entry in self.engine.call("GET", "/containers/json?all=1"):
            if entry["ImageID"] in identities:
                self._delete(f"/containers/{entry['Id']}?force=1&v=1")
        for entry in found:
            for name in _names(entry):
                if mine in name:
                    self._delete(f"/images/{name}?force=1")

    def _delete(self, path: str) -> None:
        with contextlib.suppress(LabError):
            self.engine.call("DELETE", path)


def _names(entry: Mapping[str, list[str] | None]) -> list[str]:
    return [*(entry["RepoTags"] or []), *(entry["RepoDigests"] or [])]
