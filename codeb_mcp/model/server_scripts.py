"""The fixed commands by which a server gets what it has to have: arguments are words, contents come on stdin."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

Kind = Literal[
    "packages", "user", "line", "folder", "file", "merge", "secrets", "enable", "caddy", "firewall", "owners"
]


def digest(content: str) -> str:
    """What a script compares what it was sent with: a line that was cut must not become a file that is cut."""
    return hashlib.sha256(content.encode()).hexdigest()


_HEAD = "set -eu; umask 077; mode=$1; shift; export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive; "
_HEAD += 'change() { [ "$mode" = apply ] || { echo change; exit 0; }; }; right() { echo right; exit 0; }; '
_PLACE = """
  cat > "$1.codeb-new"
  printf '%s  %s\\n' "$5" "$1.codeb-new" | sha256sum -c --status - || { rm -f "$1.codeb-new"; echo cut >&2; exit 9; }
"""
_SETTLE = """
  chmod "$2" "$1.codeb-new"; chown "$3" "$1.codeb-new"; sync "$1.codeb-new"
  [ ! -e "$1" ] || [ -e "$1.before-codeb" ] || cp -a "$1" "$1.before-codeb"
  mv -fT "$1.codeb-new" "$1"; sync "$(dirname "$1")"
  case $1 in /etc/systemd/system/*) [ ! -d /run/systemd/system ] || systemctl daemon-reload;; esac; echo changed
"""
_SYSTEMD = """
umask 022; command -v systemctl >/dev/null || { echo "there is no systemctl: this server has no systemd" >&2; exit 8; }
[ -d /run/systemd/system ] && booted=1 || booted=
"""
SCRIPTS: Mapping[Kind, str] = {
    "packages": _HEAD + """
missing=; for one; do
  name=${one%%:*}; [ "$name" = "$one" ] || ! command -v "${one#*:}" >/dev/null || continue
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing="$missing $name"
done
[ -n "$missing" ] || right
change; umask 022; dpkg --configure -a >&2; apt-get update -q >&2 || true
apt-get install -q -y --no-remove --no-install-recommends $missing >&2; echo changed
""",
    "user": _HEAD + """
groups=; [ -z "$3" ] || ! getent group "$3" >/dev/null || groups=$3
# The group comes with the engine, which is yet to be installed.
[ -z "$3" ] || [ -n "$groups" ] || command -v dockerd >/dev/null || change
if id -u "$1" >/dev/null 2>&1; then
  [ -z "$groups" ] || case " $(id -Gn "$1") " in *" $groups "*) ;; *) change; usermod -a -G "$groups" "$1"; echo changed; exit 0;; esac
  right
fi
change
useradd --create-home --home-dir "$2" --shell /bin/sh --password '*' ${groups:+-G "$groups"} "$1"; echo changed
""",
    "folder": _HEAD + """
[ ! -L "$1" ] || { echo "$1 is a link" >&2; exit 8; }
if [ -d "$1" ]; then [ "0$(stat -c %a "$1") $(stat -c %U:%G "$1")" != "$2 $3" ] || right
elif [ -e "$1" ]; then echo "$1 is no folder" >&2; exit 8; fi
change; mkdir -p "$1"; chown "$3" "$1"; chmod "$2" "$1"; sync "$(dirname "$1")"; echo changed
""",
    "owners": _HEAD + """
owner=$1; shift; cd /; theirs() { for one; do [ ! -e "$one" ] || find "$one" -xdev ! -user "${owner%%:*}" -print0; done; }
[ "$(theirs "$@" | head -c 1 | wc -c)" = 1 ] || right
change; theirs "$@" | xargs -0r sh -c 'owner=$0; for one; do
  case $(lsattr -d -- "$one" 2>/dev/null | cut -d" " -f1) in *i*) kept=1; chattr -i -- "$one";; *) kept=;; esac
  chown -h "$owner" "$one"; [ -z "$kept" ] || chattr +i -- "$one"
done' "$owner" >&2; echo changed
""",
    "line": _HEAD + """
line=$(cat); [ "$(printf '%s' "$line" | sha256sum | cut -d' ' -f1)" = "$4" ] || { echo cut >&2; exit 9; }
[ ! -L "$1" ] || { echo "$1 is a link" >&2; exit 8; }
if [ -f "$1" ] && grep -qxF -- "$line" "$1"; then right; fi
change; { [ ! -f "$1" ] || cat "$1"; printf '%s\\n' "$line"; } > "$1.codeb-new"
""" + _SETTLE,
    "file": _HEAD + """
[ ! -L "$1" ] || { echo "$1 is a link" >&2; exit 8; }
if [ -e "$1" ]; then
  [ "$4" != keep ] || right
  [ "$(sha256sum < "$1" | cut -d' ' -f1) 0$(stat -c '%a %U:%G' "$1")" != "$5 $2 $3" ] || right
fi
change; mkdir -p -m 0755 "$(dirname "$1")"
""" + _PLACE + _SETTLE,
    "secrets": _HEAD + """
file=$1; owner=$2; shift 2; [ ! -e "$file" ] || right
change; for one; do printf '%s=%s\\n' "$one" "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')"; done > "$file.codeb-new"
chown "$owner" "$file.codeb-new"; sync "$file.codeb-new"; mv -fT "$file.codeb-new" "$file"; sync "$(dirname "$file")"; echo changed
""",
    "enable": _HEAD + _SYSTEMD + """
off=; for one; do
  unit=${one%%:*}; [ "$unit" = "$one" ] || command -v "${one#*:}" >/dev/null || continue
  systemctl -q is-enabled "$unit" 2>/dev/null || off="$off $unit"
done
[ -n "$off" ] || right
change; [ -z "$booted" ] || systemctl daemon-reload
systemctl -q enable ${booted:+--now} $off >&2; echo changed
""",
    "caddy": _HEAD + _SYSTEMD + """
# Caddy from elsewhere, and one with sites in its Caddyfile, go on as they do.
[ -e /lib/systemd/system/caddy-api.service ] || { command -v caddy >/dev/null || change; right; }
file=/etc/caddy/Caddyfile; theirs=$(dpkg-query -W -f '${Conffiles}' caddy 2>/dev/null | sed -n "s|^ *$file \\([0-9a-f]*\\).*|\\1|p")
[ ! -e "$file" ] || [ "$(md5sum < "$file" | cut -d' ' -f1)" = "$theirs" ] || right
if systemctl -q is-enabled caddy-api 2>/dev/null && ! systemctl -q is-enabled caddy 2>/dev/null; then right; fi
change; systemctl -q disable caddy >&2 || true; systemctl -q enable caddy-api >&2
[ -n "$booted" ] || { echo changed; exit 0; }
systemctl daemon-reload
# What was given to the running one through its API is served on; the next boot takes it over.
if systemctl -q is-active caddy; then
  [ "$(curl -s -m 5 http://127.0.0.1:2019/config/)" = "$(caddy adapt --config "$file" 2>/dev/null)" ] || { echo changed; exit 0; }
  systemctl stop caddy
fi
systemctl start caddy-api; echo changed
""",
    "firewall": _HEAD + """
file=$1; run=/run/codeb-firewall
show() { nft -s list table inet codeb 2>/dev/null || true; }
wanted() { unshare -n sh -c 'nft -f "$1" && nft -s list table inet codeb' sh "$1"; }
command -v nft >/dev/null || { change; echo "there is no nft: install the package nftables" >&2; exit 8; }
if [ "$mode" = keep ]; then
  [ "$(cat "$run/token")" = "$3" ] && mv "$run/back" "$run/kept" || { echo "the former rules are back" >&2; exit 10; }
  mv -fT "$file.codeb-new" "$file"; sync "$(dirname "$file")"
  kill -- "-$(cat "$run/pid")" 2>/dev/null || true; rm -rf "$run"; echo changed; exit 0
fi
umask 022; mkdir -p /run; new=$(mktemp /run/codeb-firewall.XXXXXX); trap 'rm -f "$new"' EXIT; cat > "$new"
printf '%s  %s\\n' "$2" "$new" | sha256sum -c --status - || { echo cut >&2; exit 9; }
same() { [ -e "$file" ] && cmp -s "$new" "$file" && [ "$(show)" = "$(wanted "$new")" ]; }
if [ ! -e "$run/back" ] && same; then right; fi
change; nft -c -f "$new"
# Somebody else's rules still wait to be kept or taken back.
if [ -e "$run/back" ]; then kill -- "-$(cat "$run/pid")" 2>/dev/null || true; nft -f "$run/back"; rm -rf "$run"; fi
mkdir -p -m 0700 "$run"; mkdir -p -m 0755 "$(dirname "$file")"
{ printf 'table inet codeb\\ndelete table inet codeb\\n'; show; } > "$run/back.part"; printf '%s' "$3" > "$run/token"
mv "$run/back.part" "$run/back"; cp "$new" "$file.codeb-new"; chmod 0644 "$file.codeb-new"; sync "$file.codeb-new"
# Unless somebody says within this time that a new connection came through, all is as it was.
setsid sh -c 'echo $$ > "$0/pid.part"; mv "$0/pid.part" "$0/pid"; sleep "$1"
  mv "$0/back" "$0/undone" && nft -f "$0/undone"; rm -rf "$0"' "$run" "$4" </dev/null >/dev/null 2>&1 &
until [ -e "$run/pid" ]; do sleep 0.02; done
nft -f "$new"; echo armed
""",
}  # fmt: skip
"""Fixed commands: arguments are words, contents come on stdin. The first argument is `check` or `apply`; the answer is right,
change or changed. Each has its effect as a whole, and a second time none."""
