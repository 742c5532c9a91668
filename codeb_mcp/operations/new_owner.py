"""The way back in when `api-keys` is damaged and none of its kept versions is left: a new document with one new owner key.

For whoever owns the machine, not for callers: nobody has a key then.
"""

from __future__ import annotations

from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import Conflict, RegistryDamaged
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.keys import PLATFORM_TEAM, NewKey, issue, with_key
from codeb_mcp.registry.audit import AuditRecord
from codeb_mcp.registry.files import FileStore

KEYS = "api-keys"


async def require_keys_lost(services: Services) -> FileStore:
    """The store, when its keys are damaged and cannot be restored; raises Conflict when there is another way, and
    RegistryDamaged for a registry that is not in files."""
    store = services.store
    if not isinstance(store, FileStore):
        raise RegistryDamaged("only a registry in files can be given a new key", hint="Use the backend's own backups.")
    damage = next((one for one in await store.examine() if one.key == KEYS), None)
    if damage is None:
        hint = "Owners make keys with `codeb token create`; without any file of keys `codeb init` makes the first one."
        raise Conflict("the keys are not damaged, and none is made without one", hint=hint)
    if damage.last_good_serial is not None:
        hint = "Run `codeb registry rebuild --apply`: it restores them."
        raise Conflict(f"version {damage.last_good_serial} of the keys is kept and readable", hint=hint)
    return store


async def new_owner_key(services: Services, *, by: str) -> str:
    """Put the damaged keys aside in `.damaged`, write new ones with one owner key of the platform's team and answer its text,
    which exists nowhere else. All former keys are void. The audit trail has it before it happens.

    Raises what `require_keys_lost` raises, and RegistryDamaged when the trail cannot be written: nothing was changed then.
    """
    store = await require_keys_lost(services)
    now = services.drivers.clock.now()
    issued = issue(NewKey(PLATFORM_TEAM, Role.OWNER, "owner after loss of all keys", life=None), by=by, now=now)
    record = AuditRecord(
        at=now,
        actor=by,
        key_id=issued.record.id,
        team=PLATFORM_TEAM,
        role=Role.OWNER.value,
        tool="owner_key_new",
        outcome="ok",
        arguments={"reason": "api-keys was damaged and no version of it was left; all former keys are void"},
    )
    await services.trail.write(lambda: record, durable=True)
    await store.replace_damaged(KEYS, with_key(None, issued.record, now))
    services.log.warning("a new owner key was made on the machine", key_id=issued.record.id, by=by)
    return issued.text
