"""Containers in the engine's own JSON: what we ask for, what it tells. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from codeb_mcp.drivers.protocols import Container, ContainerSpec
from codeb_mcp.model.names import image_parts

TMPFS_OPTIONS = "rw,noexec,nosuid,nodev,size=64m"
LOG_OPTIONS = {"max-size": "10m", "max-file": "3"}
FENCE_LABEL, RUN_LABEL, PROJECT_LABEL = "codeb.fence", "codeb.run", "codeb.project"
OURS = (FENCE_LABEL, RUN_LABEL, "codeb.slot")


def create_body(spec: ContainerSpec, image: str) -> dict[str, Any]:
    """The request that creates the container. Nothing else of the engine's options can be set, by design."""
    port = f"{spec.container_port}/tcp"
    return {
        "Image": image,
        "Labels": dict(spec.labels),
        "Env": [f"{name}={value}" for name, value in spec.environment.items()],
        "ExposedPorts": {port: {}},
        "StopTimeout": spec.stop_timeout_seconds,
        "HostConfig": {
            "PortBindings": {port: [{"HostIp": spec.host_address, "HostPort": str(spec.host_port)}]},
            "CapDrop": ["ALL"],
            "CapAdd": list(spec.capabilities),
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": spec.pids,
            "Memory": spec.memory_bytes,
            "MemorySwap": spec.memory_bytes,
            "NanoCpus": round(spec.cpus * 1_000_000_000),
            "ReadonlyRootfs": spec.read_only_root,
            "Tmpfs": {path: TMPFS_OPTIONS for path in spec.tmpfs},
            "Init": True,
            # Not "unless-stopped": after a power loss engine 20.10 takes those for stopped by hand.
            "RestartPolicy": {"Name": "always"},
            "LogConfig": {"Type": "json-file", "Config": LOG_OPTIONS},
        },
    }


def image_names(spec: ContainerSpec) -> list[str]:
    """What to call the image when creating, best first: pinned by digest where the reference has one, then its id."""
    repository, _, digest = image_parts(spec.image_reference)
    return [*([f"{repository}@{digest}"] if digest else []), spec.image_id]


def fence_of(labels: Mapping[str, str]) -> int:
    """The fencing token in the labels; 0 for none or nonsense."""
    text = labels.get(FENCE_LABEL, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def is_ours(labels: Mapping[str, str]) -> bool:
    """Whether we made the container; others are never stopped or removed. Containers inherit their image's labels, so
    only labels that make no sense on an image count."""
    return any(name in labels for name in OURS)


def is_wanted(container: Container, spec: ContainerSpec) -> bool:
    """Whether this is the container of the spec: made by the same run from the same image."""
    run = spec.labels.get(RUN_LABEL)
    return (
        run is not None
        and container.labels.get(RUN_LABEL) == run
        and container.image_id == spec.image_id
        and container.state not in ("dead", "removing")
    )


def container_of(data: Mapping[str, Any]) -> Container:
    """A container out of the engine's inspect answer."""
    config, state = data["Config"], data["State"]
    bindings = (data.get("HostConfig") or {}).get("PortBindings") or {}
    ports = {
        int(one["HostPort"]): int(inner.partition("/")[0])
        for inner, entry in bindings.items()
        for one in entry or ()
        if one.get("HostPort")
    }
    status = str(state["Status"])
    return Container(
        name=str(data["Name"]).removeprefix("/"),
        container_id=data["Id"],
        image_id=data["Image"],
        image_reference=config["Image"],
        labels=dict(config.get("Labels") or {}),
        state=status,
        host_ports=tuple(sorted(ports)),
        exit_code=None if status in ("created", "running", "paused") else state.get("ExitCode"),
        started_at=moment(state.get("StartedAt")),
        restart_count=int(data.get("RestartCount") or 0),
        oom_killed=bool(state.get("OOMKilled")),
        ports=ports,
        environment=dict(one.partition("=")[::2] for one in config.get("Env") or ()),
    )


def moment(text: str | None) -> datetime | None:
    """A time of the engine (nanoseconds, UTC); None for its "never"."""
    return None if not text or text.startswith("0001-") else datetime.fromisoformat(text)
