"""The self-hosted runner of GitHub Actions on an app server: what its files tell, and what is left to do."""

from __future__ import annotations

import json

from codeb_mcp.model.redaction import clean_text

USER, FOLDER = "runner", "/opt/actions-runner"
LABELS = ("self-hosted", "Linux", "X64", "codeb", "app-server")
REGISTER = (
    f"the self-hosted runner is not registered: unpack GitHub's runner in {FOLDER} and there, as user {USER}, run "
    "`./config.sh --url https://github.com/OWNER/REPOSITORY --token TOKEN --labels codeb,app-server`, then as root "
    f"`./svc.sh install {USER} && ./svc.sh start`"
)
LOOK = f"""[ -e {FOLDER}/.runner ] || exit 3
stat -c %U {FOLDER}/.runner
ls /etc/systemd/system/actions.runner.*.service >/dev/null 2>&1 && echo service || echo none
head -c 20000 {FOLDER}/.runner
"""
"""A fixed command: owner, whether it is a service, and what it was registered with (which is no secret). Status 3: it is
not registered."""


def runner_says(seen: str) -> str:
    """What `LOOK` found, in words, and what is not as it should be."""
    owner, service, text = (*seen.split("\n", 2), "", "", "")[:3]
    try:
        known = json.loads(text.removeprefix("\ufeff"))
        name, where = clean_text(str(known["agentName"]), limit=80), clean_text(str(known["gitHubUrl"]), limit=200)
    except (ValueError, KeyError, TypeError):
        return f"{FOLDER}/.runner cannot be read: register the runner again with `./config.sh remove` and `./config.sh`"
    said = [f"the self-hosted runner {name} is registered for {where}"]
    if owner != USER:
        said.append(f"it belongs to {clean_text(owner, limit=40)} instead of {USER}: `chown -R {USER}: {FOLDER}`")
    if service != "service":
        said.append(f"it is no service: as root in {FOLDER} run `./svc.sh install {USER} && ./svc.sh start`")
    said.append(f"GitHub alone knows its labels; workflows want {', '.join(LABELS)}")
    return "; ".join(said)
