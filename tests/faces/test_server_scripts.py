"""The scripts that the infrastructure guide names: thin, and safe to repeat."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
