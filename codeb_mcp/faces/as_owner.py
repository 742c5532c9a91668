"""Root's commands on an installation of somebody else are carried out as that user."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import MutableMapping
from pathlib import Path


def act_as_owner(environ: MutableMapping[str, str]) -> None:
    """When root calls, and CODEB_ROOT belongs to another user, go on as that user, with that home: what root wrote there the
    service could neither read nor replace. Says so on stderr."""
    if os.geteuid() != 0:
        return
    root = Path(environ.get("CODEB_ROOT", "/opt/codeb"))
    try:
        account = pwd.getpwuid(root.stat().st_uid)
    except (OSError, KeyError):
        return
    if account.pw_uid == 0:
        return
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    environ["HOME"] = account.pw_dir
    sys.stderr.write(f"as {account.pw_name}, whom {root} belongs to\n")
