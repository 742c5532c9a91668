"""Dockerfiles for the kinds of apps we know: two stages, no root user, nothing to write to, `PORT` from outside.

Everything in them is a constant of this file except the port, which is a checked number. Secrets that a build needs are
mounted for one step (BuildKit) and are in no layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

DOCKERFILE = "Dockerfile"
DOCKERIGNORE = ".dockerignore"


class AppType(StrEnum):
    """What an app is written with."""

    NEXTJS = "nextjs"
    REMIX = "remix"
    NODEJS = "nodejs"
    PYTHON = "python"
    GO = "go"


@dataclass(frozen=True, slots=True)
class BuildSecret:
    """A file that a build may need to reach private packages. `name`: the CI secret with its text; `purpose` in words."""

    name: str
    purpose: str

    @property
    def id(self) -> str:
        """How the Dockerfile calls it."""
        return self.name.lower()


_NPMRC = BuildSecret("NPMRC", "an .npmrc for private npm packages")
_PIP_CONF = BuildSecret("PIP_CONF", "a pip.conf for a private package index")
_NETRC = BuildSecret("NETRC", "a .netrc for private Go modules")
SECRETS: Mapping[AppType, BuildSecret] = {
    AppType.NEXTJS: _NPMRC,
    AppType.REMIX: _NPMRC,
    AppType.NODEJS: _NPMRC,
    AppType.PYTHON: _PIP_CONF,
    AppType.GO: _NETRC,
}

_HEAD = """\
# The contract with CodeB:
# - listen on 0.0.0.0 at $PORT ({port} unless the environment says otherwise);
# - GET /health answers 200 once requests can be served, 503 until then; CodeB asks, so no HEALTHCHECK is needed here;
# - SIGTERM: finish the requests that are running, then exit. CMD has no shell, so the signal reaches the app;
# - the root file system is read-only when deployed: write to /tmp only;
# - secrets come at run time from the environment file. One that the build needs is mounted, never ARG or ENV.
"""
_NODE_BUILD = """\
FROM node:24-bookworm-slim AS build
WORKDIR /app
COPY package.json package-lock.json ./
RUN --mount=type=secret,id=npmrc,target=/root/.npmrc npm ci --include=dev
COPY . .
"""
_NODE_RUN = """
FROM node:24-bookworm-slim
ENV NODE_ENV=production HOST=0.0.0.0 HOSTNAME=0.0.0.0 PORT={port}
WORKDIR /app
"""
_NODE_END = """\
USER 1000:1000
EXPOSE {port}
"""
_BODIES: Mapping[AppType, str] = {
    AppType.NEXTJS: (
        '# next.config must say output: "standalone". Pages are not cached on disk; keep a shared cache elsewhere.\n'
        + _NODE_BUILD
        + "ENV NEXT_TELEMETRY_DISABLED=1\nRUN mkdir -p public && npm run build\n"
        + _NODE_RUN
        + "COPY --from=build /app/.next/standalone ./\n"
        + "COPY --from=build /app/.next/static ./.next/static\n"
        + "COPY --from=build /app/public ./public\n"
        + _NODE_END
        + 'CMD ["node", "server.js"]\n'
    ),
    AppType.REMIX: (
        _NODE_BUILD
        + "RUN mkdir -p public && npm run build && npm prune --omit=dev\n"
        + _NODE_RUN
        + "COPY --from=build /app/package.json ./\n"
        + "COPY --from=build /app/node_modules ./node_modules\n"
        + "COPY --from=build /app/build ./build\n"
        + "COPY --from=build /app/public ./public\n"
        + _NODE_END
        + 'CMD ["node_modules/.bin/remix-serve", "build/server/index.js"]\n'
    ),
    AppType.NODEJS: (
        '# Starts the "main" of package.json, index.js unless it says otherwise.\n'
        + _NODE_BUILD
        + "RUN npm run build --if-present && npm prune --omit=dev\n"
        + _NODE_RUN
        + "COPY --from=build /app ./\n"
        + _NODE_END
        + 'CMD ["node", "."]\n'
    ),
    AppType.PYTHON: """\
# Starts main.py, which reads PORT. With gunicorn: CMD ["gunicorn", "main:app"], it reads PORT by itself.
FROM python:3.13-slim-bookworm AS build
ENV PATH=/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
WORKDIR /app
COPY requirements.txt ./
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf pip install --no-cache-dir -r requirements.txt

FROM python:3.13-slim-bookworm
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PORT={port}
WORKDIR /app
COPY --from=build /venv /venv
COPY . .
USER 1000:1000
EXPOSE {port}
CMD ["python", "main.py"]
""",
    AppType.GO: """\
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum* ./
RUN --mount=type=secret,id=netrc,target=/root/.netrc go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /app .

FROM gcr.io/distroless/static-debian12:nonroot
ENV PORT={port}
COPY --from=build /app /app
USER 65532:65532
EXPOSE {port}
CMD ["/app"]
""",
}
_IGNORED = (
    "# What the image must not hold: history, secrets, and what the build makes itself.",
    ".git",
    ".github",
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    "Dockerfile",
    ".dockerignore",
)
_IGNORED_MORE: Mapping[AppType, tuple[str, ...]] = {
    AppType.NEXTJS: ("node_modules", ".next", ".npmrc"),
    AppType.REMIX: ("node_modules", "build", ".npmrc"),
    AppType.NODEJS: ("node_modules", "dist", ".npmrc"),
    AppType.PYTHON: (".venv", "venv", "**/__pycache__", "**/*.pyc", "pip.conf"),
    AppType.GO: ("bin", ".netrc"),
}


def dockerfile(kind: AppType, port: int) -> str:
    """The Dockerfile of such an app that listens on `port` unless told otherwise."""
    return (_HEAD + _BODIES[kind]).replace("{port}", str(int(port)))


def dockerignore(kind: AppType) -> str:
    """What is kept out of the build."""
    return "\n".join((*_IGNORED, *_IGNORED_MORE[kind])) + "\n"
