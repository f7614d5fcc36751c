#!/usr/bin/env bash
# Installs what the tests need and this machine lacks: foreign clients and servers from Debian, and the dashboard's
# and the browser test's npm packages. Says what it does; asks nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

# program:package
needed="curl:curl python3:python3 nft:nftables ip:iproute2 openssl:openssl redis-server:redis-server redis-cli:redis-tools
h2load:nghttp2-client psql:postgresql chromium:chromium podman:podman buildah:buildah runc:runc iptables:iptables
catatonit:catatonit"

missing=()
for pair in $needed; do
    PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
    missing+=(postgresql)
fi
# Podman's helpers, which are in no PATH.
for helper in netavark aardvark-dns; do
    [ -e "/usr/lib/podman/$helper" ] || missing+=("$helper")
done

if [ "${#missing[@]}" -gt 0 ]; then
    command -v apt-get >/dev/null || {
        echo "setup: missing: ${missing[*]}; this is not a Debian system, so please install them" >&2
        exit 1
    }
    root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || {
            echo "setup: missing: ${missing[*]}; installing needs root or sudo" >&2
            exit 1
        }
        root=(sudo)
    fi
    echo "setup: apt-get install ${missing[*]}"
    # Packages must not start servers of their own: tests start what they need, where they need it.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
        "${root[@]}" chmod +x "$policy"
        trap '"${root[@]}" rm -f "$policy"' EXIT
    fi
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

for folder in control-plane/dashboard tests/browser; do
    if [ ! -d "$folder/node_modules" ]; then
        echo "setup: npm ci in $folder"
        npm ci --prefix "$folder" --no-audit --no-fund --silent
    fi
done
