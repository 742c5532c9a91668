"""Old images. Only ones that a run of ours brought here are ever touched; what a slot holds, and the way back, stays."""

from __future__ import annotations

from collections.abc import Sequence

from codeb_mcp.drivers.protocols import Image
from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.names import Environment, lease_name
from codeb_mcp.model.slot import SlotState
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.places import Place, every_place
from codeb_mcp.operations.state import environments, load_ssot, parse_project
from codeb_mcp.registry.store import Document, update

FOLDER = "images/"


async def remember_image(services: Services, project: str, image: Image) -> None:
    """Note that a run of this project brought the image here; newest last."""
    now = utc_text(services.drivers.clock.now())

    def add(doc: Document | None) -> Document:
        entry = {"imageId": image.image_id, "reference": image.reference, "pulledAt": now}
        kept = [one for one in (doc or {}).get("images", []) if one["imageId"] != image.image_id]
        return {**(doc or {}), "images": [*kept, entry]}

    await update(services.store, FOLDER + project, add)


async def collect_images(services: Services) -> list[str]:
    """Remove images that our runs brought here, that no slot holds and that are not among the project's newest `keep`.

    An image that any container still uses is refused by the engine and stays. Answers the references removed.
    """
    pinned = {
        record.image_id
        for slots in await environments(services.store)
        for record in (slots.blue, slots.green)
        if record.state is not SlotState.EMPTY
    }
    projects = (await load_ssot(services.store)).get("projects", {})
    removed: list[str] = []
    where = await every_place(services)
    for key in await services.store.keys(FOLDER):
        project = key.removeprefix(FOLDER)
        if await _is_busy(services, project):
            continue
        keep = parse_project(project, projects[project]).settings.keep if project in projects else 0
        stored = await services.store.get(key)
        entries = stored.doc.get("images", []) if stored else []
        old = entries[: max(0, len(entries) - keep)]
        gone = []
        for entry in old:
            if entry["imageId"] in pinned:
                continue
            went, stays = await _remove(where, entry["imageId"])
            if went:
                removed.append(entry["reference"])
            if not stays:
                gone.append(entry["imageId"])
        if gone:
            await _strike(services, key, frozenset(gone))
    return removed


async def _remove(where: Sequence[Place], image_id: str) -> tuple[bool, bool]:
    """Whether it was removed from any app server, and whether it is still on any. One that cannot be asked may have it."""
    went = stays = False
    for place in where:
        try:
            if await place.drivers.images.remove(image_id):
                went = True
            elif await place.drivers.images.find(image_id) is not None:
                stays = True
        except CodebError:
            if not place.key:
                raise
            stays = True
    return went, stays


async def _is_busy(services: Services, project: str) -> bool:
    """Whether a run of the project is under way; the image it has pulled may not stand in any slot yet."""
    for environment in (None, *Environment):
        if await services.store.lease(lease_name(project, environment)) is not None:
            return True
    return False


async def _strike(services: Services, key: str, gone: frozenset[str]) -> None:
    def without(doc: Document | None) -> Document | None:
        if doc is None:
            return None
        return {**doc, "images": [entry for entry in doc.get("images", []) if entry["imageId"] not in gone]}

    await update(services.store, key, without)
