#!/bin/sh
# Sets up the registry below CODEB_ROOT (default /opt/codeb). Safe to repeat: nothing that exists is erased or replaced.
set -eu
exec codeb init "$@"
