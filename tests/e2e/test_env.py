"""Variables on real parts: into a container's own process, and onto a Backup server behind a real sshd."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pyrage
import pytest
from pyrage import x25519

from codeb_mcp.drivers.ssh import SshHosts, SshSettings
from codeb_mcp.model.env import ENV_NAME_PATTERN, EnvFile, parse, render
from codeb_mcp.model.errors import CodebError
from codeb_mcp.operations.env_copies import catch_up
from codeb_mcp.registry.env_history import EnvHistories, values_of
from codeb_mcp.registry.store import update
from codeb_mcp.settings import EnvSettings
from tests.faces.payloads import others, texts
from tests.lab.daemons import wait_until
from tests.lab.hosts import LabHosts
from tests.lab.installation import Installation
from tests.lab.samples import SampleImages
from tests.unit.operations.world import World, initialised

LIVE = {"projectName": "shop", "environment": "production"}
ODD = "\"'`\\$#=\r\n\t \x0b\x0c\x1c\x85\xa0\u2028\u2029\ufeff{}%!;&|<>()*?[]~^,é🚀\x01\x1b\x7fnrtabfv0"
NAME = re.compile(ENV_NAME_PATTERN[1:-1])
FILES, PER_FILE, PER_CONTAINER = 1000, 3, 250


def cases(seed: int) -> Iterator[dict[str, str]]:
    """Variables of env files: odd characters, any characters, words of shells and files."""
    chance = random.Random(seed)
    fixed = [text for text in (*texts(), "", " ", "'", '"', "\\", "\\n", "#", "a #b", "$A", "a=b") if "\0" not in text]

    def any_text() -> str:
        odd = "".join(chance.choice(ODD) for _ in range(chance.randrange(40)))
        any_character = "".join(
            chr(code) for code in (chance.randrange(1, 0x10FFFF) for _ in range(20)) if not 0xD800 <= code < 0xE000
        )
        return chance.choice([odd, any_character, chance.choice(fixed)[:400], "x" * chance.randrange(800)])

    for number in range(FILES):
        yield {f"V{number}_{turn}": any_text() for turn in range(PER_FILE)}


async def test_a_thousand_env_files_reach_a_containers_own_process_byte_for_byte(
    installation: Installation, sample_images: SampleImages, unique: str
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    installation.serve()
    assert installation.call("project_create", projectName=unique, environments=["production"]).ok
    live: dict[str, Any] = {"projectName": unique, "environment": "production"}
    reached = 0
    batch: dict[str, str] = {}
    for number, values in enumerate(cases(seed), 1):
        assert parse(render(values)) == EnvFile(values)
        batch |= values
        if number % PER_CONTAINER:
            continue
        names = list(batch)
        for start in range(0, len(names), 150):
            part = {name: batch[name] for name in names[start : start + 150]}
            said = installation.call("env_set", values=part, allowPlaceholders=True, **live)
            assert said.ok, said.body
        image = await sample_images.pushed(f"v{number}")
        said = installation.call("deploy", image=image, force=True, **live)
        assert said.ok, said.body
        seen = environment_of(installation, f"{unique}-production-{said.body['slot']}")
        assert {name: seen.get(name.encode()) for name in batch} == {
            name: value.encode() for name, value in batch.items()
        }
        assert installation.call("env_unset", names=names[:200], **live).body["redeployNeeded"] is True
        for start in range(200, len(names), 200):
            assert installation.call("env_unset", names=names[start : start + 200], **live).ok
        reached += PER_CONTAINER
        batch = {}
    assert reached == FILES
    verified = installation.call("env_verify", **live).body
    assert verified["ok"], verified
    print(f"{reached} env files, {reached * PER_FILE} values, all byte for byte")


def environment_of(installation: Installation, container: str) -> dict[bytes, bytes]:
    """What the kernel says that the app's own process was started with."""
    pid = installation.engine.call("GET", f"/containers/{container}/json")["State"]["Pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(lambda: bool(children.read_text(encoding="ascii").split()), 10, "the app was not started")
    own = children.read_text(encoding="ascii").split()[0]
    pairs = (entry.partition(b"=") for entry in Path(f"/proc/{own}/environ").read_bytes().split(b"\0") if entry)
    return {name: value for name, _, value in pairs}


# ── over SSH ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Far:
    """An installation whose Backup server is a lab host, and the folder there."""

    world: World
    lab: LabHosts
    folder: str

    async def put(self, **values: str) -> dict[str, Any]:
        """Set variables of production."""
        return await self.world.call("env_set", **LIVE, values=values)

    def there(self) -> dict[str, bytes]:
        """The files on the Backup server, seen without SSH."""
        where = f"{self.folder}/shop/production"
        names = self.lab.exec("backup", "ls", "-A", where).stdout.decode().split()
        return {name: self.lab.exec("backup", "cat", f"{where}/{name}").stdout for name in names}


@pytest.fixture
async def far(hosts: LabHosts, tmp_path: Path, unique: str) -> AsyncIterator[Far]:
    """A fresh installation with the lab's Backup server, for this test alone."""
    world = await initialised(tmp_path / "codeb")
    folder = f"/home/codeb/{unique}"
    ssh = SshHosts(SshSettings(key_file=hosts.key_file, connect_seconds=3))
    world.settings = world.settings.model_copy(
        update={"env": EnvSettings(backup_folder=folder, backup_seconds=6, immutable_master=False)}
    )
    drivers = dataclasses.replace(world.services.drivers, hosts=ssh)
    world.services = dataclasses.replace(world.services, settings=world.settings, drivers=drivers)
    world.services.runs.bind(world.services)
    entry = {"host": hosts.address("backup"), "role": "backup", "user": "codeb", "hostKey": hosts.host_key("backup")}
    await update(world.services.store, "ssot", lambda doc: {**(doc or {}), "servers": {"backup": entry}})
    await world.project()
    with hosts.alone("backup"):
        try:
            yield Far(world, hosts, folder)
        finally:
            await ssh.close()
            await world.close()
            hosts.heal("backup")
            hosts.exec("backup", "rm", "-rf", folder)


@pytest.mark.real("hosts")
async def test_a_hundred_sets_at_once_and_a_drill_from_the_backup_server_alone(far: Far) -> None:
    await far.put(FIRST="1")
    said = await asyncio.gather(*(far.put(**{f"N{n}": f"value {n}\n'\"$"}) for n in range(100)))
    assert all(one["backedUp"] for one in said), {one.get("backupProblem") for one in said}
    assert (await far.world.call("env_verify", **LIVE))["copies"] == "same"
    root = far.world.settings.root
    identity = x25519.Identity.from_str((root / "keys/env.agekey").read_text(encoding="utf-8").strip())
    wanted = values_of((root / "projects/shop/.env.production").read_bytes())
    copies = far.there()
    assert all(b"value" not in data for data in copies.values())
    with tempfile.TemporaryDirectory(prefix="codeb-drill-") as scratch:
        place = Path(scratch, "env-backup/shop/production")
        place.mkdir(parents=True)
        for name, data in copies.items():
            (place / name.removesuffix(".age")).write_bytes(pyrage.decrypt(data, [identity]))
        assert parse((place / "current.env").read_bytes().decode()).values == wanted
        assert (place / "master.env").read_bytes() == b"FIRST=1\n"
        log = json.loads((place / "backup-log.json").read_bytes())
        versions = [entry["version"] for entry in log["entries"]]
        assert versions == sorted(versions)
        assert {one["version"] for one in said} <= set(versions)
        Path(scratch, "keys").mkdir(mode=0o700)
        Path(scratch, "keys/env.key").write_bytes((root / "keys/env.key").read_bytes())
        again = EnvHistories(Path(scratch), immutable_master=False)
        assert await again.examine("shop", "production") == []
        assert len((await again.snapshot("shop", "production")).entries) == 101
    print("100 concurrent sets over SSH, 101 versions on the Backup server, drill from its copies alone: whole")


@pytest.mark.real("hosts")
@pytest.mark.parametrize("fault", ["cut", "drop in", "drop out", "reset", "power"])
async def test_a_backup_server_that_goes_away_loses_no_change_and_has_all_of_them_later(far: Far, fault: str) -> None:
    await far.put(A="0")
    lab, how = far.lab, fault.rpartition(" ")[2]
    if fault == "cut":
        lab.cut("backup")
    elif fault == "power":
        lab.kill("backup")
    else:
        lab.drop("backup", direction="out" if how == "out" else "in", reset=fault == "reset")
    said = await far.put(A="1")
    assert said["backedUp"] is False
    assert "backup" in said["backupProblem"] or "no copy within" in said["backupProblem"]
    assert (await far.world.call("env_scan", **LIVE))["live"] == "same"
    if fault == "power":
        lab.boot("backup")
    lab.heal("backup")
    lab.undrop("backup")
    async with asyncio.timeout(60):
        while await catch_up(far.world.services):
            await asyncio.sleep(0.05)
    assert (await far.world.call("env_verify", **LIVE))["copies"] == "same"


def _fits(payload: Any) -> bool:
    """Whether it is a request that may be granted, however odd."""
    fine = isinstance(payload, dict) and payload
    return bool(fine) and all(NAME.fullmatch(name) and isinstance(value, str) for name, value in payload.items())


@pytest.mark.real("hosts")
async def test_hostile_names_and_values_do_nothing_on_either_side(far: Far, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched", encoding="utf-8")
    canary = f"{far.folder}-canary"

    def filled(text: str) -> str:
        return text.replace("{canary}", canary).replace("{victim}", str(outside / "victim"))

    payloads = [filled(text) for text in texts()]
    assert len(payloads) >= 400
    for start in range(0, len(payloads), 100):
        values = {f"H{start + n}": text for n, text in enumerate(payloads[start : start + 100]) if "\0" not in text}
        said = await far.world.call("env_set", **LIVE, values=values, allowPlaceholders=True)
        assert said["backedUp"] is True, said
    tried: list[Any] = [{payload: "x"} for payload in payloads if not NAME.fullmatch(payload)]
    tried += [{"A": payload} for payload in others()] + [payload for payload in others() if not _fits(payload)]
    assert len(tried) >= 400
    for values in tried:
        with pytest.raises(CodebError) as refusal:
            await far.world.call("env_set", **LIVE, values=values)
        assert refusal.value.code == "invalid_request", values
    assert values_of((far.world.settings.root / "projects/shop/.env.production").read_bytes()).keys() >= {"H0", "H99"}
    assert (await far.world.call("env_verify", **LIVE))["copies"] == "same"
    assert sorted(path.name for path in outside.iterdir()) == ["victim"]
    assert (outside / "victim").read_text(encoding="utf-8") == "untouched"
    assert far.lab.exec("backup", "ls", canary, check=False).returncode != 0
    assert not Path(canary).exists()
