"""The scripts that the infrastructure guide names: thin, and safe to repeat."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from codeb_mcp.model.server_setup import INIT

SCRIPTS = Path(__file__).parents[2] / "scripts" / "server"


def test_init_makes_a_registry_once_and_never_erases_it(tmp_path: Path) -> None:
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CODEB_ROOT": str(tmp_path / "codeb")}
    said = []
    for _ in range(2):
        done = subprocess.run(
            [SCRIPTS / "init-ssot-registry.sh"], env=environ, capture_output=True, text=True, timeout=60, check=True
        )
        said.append(done.stdout)
        registry = {path.name: path.read_bytes() for path in (tmp_path / "codeb/registry").glob("*.json")}
    assert "codeb_default_owner_" in said[0]
    assert "nothing was changed" in said[1]
    assert set(registry) == {"ssot.json", "teams.json", "api-keys.json"}


def test_set_up_puts_the_same_script_on_the_server() -> None:
    assert (SCRIPTS / "init-ssot-registry.sh").read_text(encoding="utf-8") == INIT


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as somebody else")
def test_root_acts_as_the_user_whom_the_installation_belongs_to() -> None:
    account, root = pwd.getpwnam("nobody"), Path(tempfile.mkdtemp(prefix="codeb-owned-"))
    os.chown(root, account.pw_uid, account.pw_gid)
    code = "import os; from codeb_mcp.faces.as_owner import act_as_owner; "
    code += "act_as_owner(os.environ); print(os.getresuid(), os.getresgid(), os.getgroups(), os.environ['HOME'])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "CODEB_ROOT": str(root)},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    finally:
        root.rmdir()
    uid, gid = account.pw_uid, account.pw_gid
    assert done.stdout.strip() == f"{(uid,) * 3} {(gid,) * 3} [{gid}] {account.pw_dir}"
    assert "as nobody" in done.stderr
