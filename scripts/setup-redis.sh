#!/usr/bin/env bash
# Makes sure that redis-server is there for the tests and for `connito demo --processes`.
set -euo pipefail
if command -v redis-server >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing redis-server"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null
    exit 0
fi
echo "redis-server is missing. Install it with: sudo apt-get install redis-server" >&2
exit 1
