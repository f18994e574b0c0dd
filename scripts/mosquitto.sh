#!/usr/bin/env bash
# See that a mosquitto broker can be started: installed, or by apt or brew, or unpacked into .cache without root.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=.cache/mosquitto
say() { printf '%s\n' "$*" >&2; }

have() {
  PATH="$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin" command -v mosquitto >/dev/null && return
  [ -x "$cache/mosquitto" ]
}

by_package_manager() {
  if command -v apt-get >/dev/null; then
    root=()
    if [ "$(id -u)" != 0 ]; then sudo -n true 2>/dev/null || return 1; root=(sudo); fi
    say "installing mosquitto (apt)"
    # The demo and the tests start brokers of their own: the package's service must not hold port 1883.
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends mosquitto >/dev/null
  elif command -v brew >/dev/null; then
    say "installing mosquitto (brew)"
    brew install --quiet mosquitto
  else
    return 1
  fi
}

# Debian and Ubuntu without root: download the package and the libraries that are missing, unpack, wrap.
by_unpacking() {
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
  say "unpacking mosquitto into $cache (apt-get download, no root)"
  rm -rf "$cache" && mkdir -p "$cache/deb"
  packages=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances mosquitto | grep -E '^(mosquitto|lib[a-z0-9.+-]+)$' | grep -v debconf | sort -u)
  for package in $packages; do
    if [ "$package" = mosquitto ] || ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok'; then
      (cd "$cache/deb" && apt-get download -qq "$package" >/dev/null 2>&1) || true
    fi
  done
  ls "$cache"/deb/mosquitto_*.deb >/dev/null 2>&1 || return 1
  for deb in "$cache"/deb/*.deb; do dpkg-deb -x "$deb" "$cache/root"; done
  rm -rf "$cache/deb"
  cat > "$cache/mosquitto" <<'WRAPPER'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")/root
LD_LIBRARY_PATH=$(find "$here" -name '*.so*' -printf '%h\n' | sort -u | tr '\n' ':')$LD_LIBRARY_PATH
export LD_LIBRARY_PATH
exec "$here/usr/sbin/mosquitto" "$@"
WRAPPER
  chmod +x "$cache/mosquitto"
  "$cache/mosquitto" -h >/dev/null 2>&1 || [ $? -le 3 ]
}

have || by_package_manager || by_unpacking || true
have || {
  say "error: the mosquitto MQTT broker is missing; install it with 'apt install mosquitto' or 'brew install mosquitto'"
  exit 1
}
