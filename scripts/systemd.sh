#!/usr/bin/env bash
# See that systemd-analyze is there, which tests judge the units with: installed, or by apt. Without it they are skipped.
set -euo pipefail

if command -v systemd-analyze >/dev/null || ! command -v apt-get >/dev/null; then exit 0; fi
root=()
if [ "$(id -u)" != 0 ]; then
  sudo -n true 2>/dev/null || exit 0
  root=(sudo)
fi
printf 'installing systemd for systemd-analyze (apt)\n' >&2
"${root[@]}" apt-get update -qq || exit 0
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends systemd >/dev/null || true
