"""Images on a Docker Engine: pulled with credentials and progress, known by digest, removed with care."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codeb_mcp.drivers.docker_api import EngineApi, engine_api
from codeb_mcp.drivers.docker_credentials import Credentials
from codeb_mcp.drivers.docker_errors import clean, disk_full, refused_pull, status_of
from codeb_mcp.drivers.docker_pull import Entries, PullMeter
from codeb_mcp.drivers.protocols import Image, PullProgress
from codeb_mcp.model.errors import CodebError, DriverRefused, DriverUnavailable, InsufficientStorage
from codeb_mcp.model.names import image_parts, image_registry

if TYPE_CHECKING:
    import aiodocker

"""User and password for a registry host (`ghcr.io`, `127.0.0.1:5000`, `docker.io`); None for none."""

MIN_FREE_BYTES = 2 * 1024**3
IDLE_SECONDS = 60.0
REMOVE_SECONDS = 60.0
HUB, HUB_LOGIN = "docker.io", "https://index.docker.io/v1/"
UNTAGGED = "<none>"


class DockerImages:
    """The `Images` protocol on the engine at `host`. Belongs to the event loop of its first call.

    A pull is refused while the engine's disk has less than `min_free_bytes` left, and given up when nothing comes for
    `idle_seconds`; it has no limit in total, which is the caller's to set.
    """

    def __init__(
        self,
        host: str | EngineApi,
        credentials: Credentials,
        min_free_bytes: int = MIN_FREE_BYTES,
        *,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._api = engine_api(host)
        self._credentials = credentials
        self._min_free_bytes = min_free_bytes
        self._idle_seconds = idle_seconds
        self._info: dict[str, Any] = {}

    async def pull(self, reference: str, *, policy: str = "always", progress: PullProgress | None = None) -> Image:
        """See `Images.pull`. DriverRefused has `reason` image_not_found, unauthorized, wrong_platform,
        invalid_reference or pull_failed; DriverUnavailable registry_unreachable, registry_tls, registry_busy or
        engine_unreachable; InsufficientStorage has `freeBytes` and `neededBytes`."""
        if policy != "always":
            here = await self.find(reference)
            if here is not None:
                return here
            if policy == "never":
                raise DriverRefused(
                    f"image {reference} is not on the engine and must not be pulled",
                    hint="Load it onto the engine, or allow pulling (policy missing or always).",
                    reason="image_not_found",
                    image=reference,
                )
        await self._check_disk()
        digest = await self._pull(reference, progress or _unheard)
        image = await self._found_after_pull(reference, digest)
        if image is None:
            raise DriverUnavailable(
                f"image {reference} was pulled and is gone again",
                hint="Something removes images on this engine; see what, then try again.",
                reason="image_vanished",
            )
        return image

    async def find(self, reference: str) -> Image | None:
        """See `Images.find`."""
        return await self._inspect(reference, reference, None)

    async def list_labelled(self, label: str) -> list[Image]:
        """See `Images.list_labelled`."""

        async def read(docker: aiodocker.Docker) -> list[Image]:
            entries = await docker.images.list(filters={"label": [label]})
            return [_image(entry, _first_name(entry), entry.get("Labels"), None) for entry in entries]

        return await self._api.call("listing images", read)

    async def remove(self, image_id: str) -> bool:
        """See `Images.remove`. All its names go; nothing is forced. Raises DriverRefused when it is no id."""
        if not image_id.startswith("sha256:"):
            raise DriverRefused(f"{clean(image_id)} is no image id", hint="Name the image by its id.", reason="no_id")
        names = await self._names_if_unused(image_id)
        if names is None:
            return False
        for name in [*names, image_id]:
            if not await self._delete(name):
                return False
        return True

    async def close(self) -> None:
        """See `Images.close`."""
        await self._api.close()

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _check_disk(self) -> None:
        self._info = self._info or await self._api.info()
        free = await self._api.free_bytes(self._info)
        if free is not None and free < self._min_free_bytes:
            raise InsufficientStorage(
                f"the engine's disk has {free / 1e9:.1f} GB left, a pull needs {self._min_free_bytes / 1e9:.1f} GB free",
                hint="Free disk space (slot_cleanup removes old releases), or lower the minimum in the settings.",
                freeBytes=free,
                neededBytes=self._min_free_bytes,
            )

    async def _pull(self, reference: str, progress: PullProgress) -> str | None:
        """Pull to the end of the stream; answers the digest that the registry delivered."""
        meter, entries = PullMeter(), Entries()
        repository, tag, digest = image_parts(reference)
        params = {"fromImage": repository, "tag": digest or tag or "latest"}
        try:
            async with self._api.stream(
                f"pulling {reference}",
                "POST",
                "images/create",
                params=params,
                headers=self._login(reference),
                idle_seconds=self._idle_seconds,
            ) as pieces:
                async for piece in pieces:
                    for entry in entries.feed(piece):
                        _raise_error(entry, reference)
                        meter.feed(entry)
                        progress(meter.fraction, meter.words)
        except DriverRefused as error:
            raise refused_pull(error, reference) from error
        if not meter.complete:
            raise DriverUnavailable(
                f"the engine broke off while pulling {reference}",
                hint="See that the engine runs, then try again.",
                reason="engine_unreachable",
            )
        return digest or meter.digest

    def _login(self, reference: str) -> dict[str, str]:
        registry = image_registry(reference)
        found = self._credentials(registry)
        if found is None:
            return {}
        server = HUB_LOGIN if registry == HUB else registry
        login = json.dumps({"username": found[0], "password": found[1], "serveraddress": server})
        return {"X-Registry-Auth": base64.urlsafe_b64encode(login.encode()).decode("ascii")}

    async def _found_after_pull(self, reference: str, digest: str | None) -> Image | None:
        # By digest first: another pull may have moved the tag since.
        if digest is not None:
            image = await self._inspect(f"{image_parts(reference)[0]}@{digest}", reference, digest)
            if image is not None:
                return image
        return await self._inspect(reference, reference, digest)

    async def _inspect(self, name: str, reference: str, digest: str | None) -> Image | None:
        async def read(docker: aiodocker.Docker) -> Image:
            data = await docker.images.inspect(name)
            return _image(data, reference, (data.get("Config") or {}).get("Labels"), digest)

        try:
            return await self._api.call(f"inspecting image {name}", read)
        except DriverRefused as error:
            if status_of(error) == 404:
                return None
            raise

    async def _names_if_unused(self, image_id: str) -> list[str] | None:
        """All tags of the image; None when it is gone or a container, running or not, is made from it."""

        async def read(docker: aiodocker.Docker) -> list[str] | None:
            data = await docker.images.inspect(image_id)
            for container in await docker.containers.list(all=True):
                if container["ImageID"] == data["Id"]:
                    return None
            return [str(name) for name in data.get("RepoTags") or ()]

        try:
            return await self._api.call(f"inspecting image {image_id}", read)
        except DriverRefused as error:
            if status_of(error) == 404:
                return None
            raise

    async def _delete(self, name: str) -> bool:
        """Remove the name, and the image with its last name; False when a container has come to use it."""

        async def delete(docker: aiodocker.Docker) -> None:
            await docker.images.delete(name)

        try:
            await self._api.call(f"removing image {name}", delete, seconds=REMOVE_SECONDS)
        except DriverRefused as error:
            if status_of(error) == 409:
                return False
            if status_of(error) != 404:
                raise
        return True


def _unheard(fraction: float | None, text: str) -> None:
    pass


def _raise_error(entry: Mapping[str, Any], reference: str) -> None:
    """A pull that fails midway answers 200 and says so in the stream only."""
    if "error" not in entry and "errorDetail" not in entry:
        return
    words = clean(str((entry.get("errorDetail") or {}).get("message") or entry.get("error")))
    if "no space left on device" in words:
        raise disk_full(words, f"pulling {reference}")
    error: CodebError = DriverRefused(f"the container engine refused pulling {reference}: {words}")
    raise refused_pull(error, reference)


def _image(data: Mapping[str, Any], reference: str, labels: Mapping[str, str] | None, digest: str | None) -> Image:
    return Image(
        reference=reference,
        image_id=data["Id"],
        digest=digest or _repository_digest(data, reference) or data["Id"],
        size_bytes=int(data.get("Size") or 0),
        labels=dict(labels or {}),
    )


def _repository_digest(data: Mapping[str, Any], reference: str) -> str | None:
    """The digest under which the reference's own repository has the image; another repository's may be foreign."""
    wanted = _familiar(image_parts(reference)[0])
    for name in data.get("RepoDigests") or ():
        repository, _, digest = str(name).partition("@")
        if repository != UNTAGGED and _familiar(repository) == wanted:
            return digest
    return None


def _familiar(repository: str) -> str:
    """The engine's short form of a repository: no `docker.io/`, no `library/`."""
    return repository.removeprefix(f"{HUB}/").removeprefix("library/")


def _first_name(entry: Mapping[str, Any]) -> str:
    names = [*(entry.get("RepoTags") or ()), *(entry.get("RepoDigests") or ())]
    return next((str(name) for name in names if not str(name).startswith(UNTAGGED)), str(entry["Id"]))
