"""A registry that lost a document for good is rebuilt from a real proxy, by the command, and goes on serving."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from typing import Any

from codeb_mcp import app
from codeb_mcp.registry.store import Change
from tests.lab.installation import Installation
from tests.lab.samples import SampleImages


def _write(installation: Installation, key: str, doc: dict[str, Any]) -> None:
    """Store the document as any part of the installation would."""

    async def run() -> None:
        async with app.opened(installation.settings) as services:
            await services.store.commit([Change(key, doc, 0)])

    asyncio.run(run())


def _rebuild(installation: Installation, *more: str) -> dict[str, Any]:
    """`codeb registry rebuild`."""
    done = subprocess.run(
        [sys.executable, "-m", "codeb_mcp", "registry", "rebuild", "--json", *more],
        env={**os.environ, "CODEB_ROOT": str(installation.root)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _version_at(installation: Installation, host: str) -> str:
    address = f"http://127.0.0.1:{installation.caddy.port}/version"
    with urllib.request.urlopen(urllib.request.Request(address, headers={"Host": host}), timeout=10) as answer:
        text: str = answer.read().decode().strip()
        return text


async def test_further_domains_that_are_lost_with_all_their_versions_come_back_from_the_proxy(
    installation: Installation, sample_images: SampleImages, unique: str
) -> None:
    own, further = f"{unique}.shop.test", f"www.{unique}.shop.test"
    entries = [{"domain": further, "environment": "production"}]
    v1, v2 = await sample_images.pushed("v1"), await sample_images.pushed("v2")
    live: dict[str, Any] = {"projectName": unique, "environment": "production", "autoPromote": True}
    await asyncio.to_thread(_write, installation, f"domains/{unique}", {"domains": entries})
    installation.serve()
    assert installation.call("project_create", projectName=unique, environments=["production"]).ok
    assert installation.call("project_update", projectName=unique, environment="production", domain=own).ok
    assert installation.call("deploy", image=v1, **live).ok
    assert [_version_at(installation, host) for host in (own, further)] == ["v1", "v1"]
    installation.stop()

    document = installation.root / "registry" / "domains" / f"{unique}.json"
    document.unlink()
    shutil.rmtree(installation.root / "registry" / ".generations" / "domains" / unique)
    proposed = await asyncio.to_thread(_rebuild, installation)
    assert [(row["key"], row["action"]) for row in proposed["data"]] == [(f"domains/{unique}", "rebuilt")]
    assert f"{further} (production)" in proposed["data"][0]["detail"]
    assert not document.exists(), "a proposal changes nothing"
    assert (await asyncio.to_thread(_rebuild, installation, "--apply"))["data"] == proposed["data"]
    assert json.loads(document.read_text(encoding="utf-8"))["domains"] == entries

    installation.caddy.restart(resume=False)
    installation.serve()
    assert installation.call("deploy", image=v2, **live).ok
    assert [_version_at(installation, host) for host in (own, further)] == ["v2", "v2"]
    assert installation.call("registry_check").body["data"] == []
    assert (await asyncio.to_thread(_rebuild, installation))["data"] == []
