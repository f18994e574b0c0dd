#!/usr/bin/env bash
# Make the environments of strangers' clients that the tests let talk to our server: perf_analyzer and ovmsclient in
# .cache/foreign/NAME, KServe's in .cache/bench-peers/kserve, where the benchmark has its server. Does nothing for those
# that are there. Without one its tests are skipped, or fail where EDGESERVE_REQUIRE_FOREIGN=1.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=.cache/foreign
python=.venv/bin/python
say() { printf '%s\n' "$*" >&2; }

install() {
  name=$1
  shift
  stamp=$cache/$name/.ready-$(printf '%s' "$*" | cksum | tr -d ' ')
  [ -e "$stamp" ] && return
  say "installing $name into $cache/$name"
  rm -rf "${cache:?}/$name"
  "$python" -m venv "$cache/$name"
  if "$cache/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@" && after_"$name"; then
    touch "$stamp"
  else
    rm -rf "${cache:?}/$name"
    say "note: $name could not be installed: its tests are skipped"
  fi
}

after_ovmsclient() { :; }

# The binary wants two libraries: libcudart of the second package, and libb64, which is only unpacked: no root needed.
after_perf_analyzer() {
  libraries=$cache/perf_analyzer/lib/libraries
  mkdir -p "$libraries"
  if ! ldconfig -p 2>/dev/null | grep -q libb64.so.0d; then
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    (cd "$libraries" && apt-get download -qq libb64-0d >/dev/null 2>&1) || fetch_with_new_lists "$libraries" || return 1
    for deb in "$libraries"/*.deb; do dpkg-deb -x "$deb" "$libraries/root"; done
    find "$libraries/root" -name 'libb64.so*' -exec mv {} "$libraries" \;
    rm -rf "$libraries/root" "$libraries"/*.deb
  fi
  find "$PWD/$cache/perf_analyzer" -name 'libcudart.so*' -exec ln -sf {} "$libraries" \;
  # It prints how it is used, and fails, when it is asked nothing: what counts is that it starts.
  LD_LIBRARY_PATH=$libraries "$cache/perf_analyzer/bin/perf_analyzer" --version >/dev/null 2>&1
}

# A fresh machine has no lists of packages.
fetch_with_new_lists() {
  if [ "$(id -u)" = 0 ]; then apt-get update -qq >/dev/null; else sudo -n apt-get update -qq >/dev/null; fi
  (cd "$1" && apt-get download -qq libb64-0d >/dev/null 2>&1)
}

scripts/bench_peers.sh kserve
mkdir -p "$cache"
install ovmsclient ovmsclient==2023.1
if [ "$(uname -m)" = x86_64 ]; then
  # The last wheels with the binary that an older glibc can start; without what they ask for: only the binary is used.
  install perf_analyzer --no-deps tritonclient==2.47.0 nvidia-cuda-runtime-cu12==12.8.90
else
  say "note: perf_analyzer is for x86-64 only: its tests are skipped"
fi
