#!/usr/bin/env bash
# Run the tests of what runs on devices with the oldest and the newest Python of devices: 3.10 (JetPack 6), 3.13.
#
# Each has an environment in .cache/pythons/VERSION with edgeserve[agent,grpc], editable, and what these tests use: the
# lines of the extra `dev` named below, and onnx, which writes the models. The compilers, the fleet manager and the other
# runtimes are not there, as on a device: tests that need them are skipped, and say so. Left out are the command line,
# the demo and the conformance suite, strangers' clients, which run in environments of their own, and the files of
# `slow`, whose minutes are spent on whole processes that `make test` starts as well.
#
# A version that is not installed is skipped, or fails where EDGESERVE_REQUIRE_PYTHONS=1. EDGESERVE_PYTHONS="3.10 3.12"
# names others. Arguments are pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=.cache/pythons
packages='pytest|pytest-timeout|pytest-xdist|hypothesis|tritonclient'
tests=(tests/agent tests/devices tests/edgeserve/{client,contracts,link,release,runtimes,trust} tests/edgeserve/test_{atomic,golden,npz,plugins}.py)
slow=(
  tests/agent/isolation/test_memory.py tests/agent/test_crashes.py tests/agent/serving/test_faults.py
  tests/agent/serving/foreign tests/agent/tune
)
say() { printf '%s\n' "$*" >&2; }

# On PATH, then pyenv's, whose shims only start when their version is switched on.
find_python() {
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python3; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c "import ensurepip, sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" >/dev/null 2>&1 || continue
    printf '%s\n' "$candidate"
    return
  done
  return 1
}

install() {
  version=$1 python=$2
  mapfile -t wanted < <(grep -oE "\"($packages)[^a-z0-9-][^\"]*\"|\"onnx>=[^\"]*\"" pyproject.toml | tr -d '"' | sort -u)
  stamp=$cache/$version/.ready-$( (cat pyproject.toml; printf '%s' "${wanted[*]}") | cksum | tr -d ' ')
  [ -e "$stamp" ] && return
  "$cache/$version/bin/python" -c '' 2>/dev/null || { rm -rf "${cache:?}/$version"; "$python" -m venv "$cache/$version"; }
  say "installing edgeserve[agent,grpc] for Python $version into $cache/$version (about 400 MB; a minute)"
  "$cache/$version/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[agent,grpc]" "${wanted[@]}"
  rm -f "$cache/$version"/.ready-*
  touch "$stamp"
}

# shellcheck source=scripts/environment.sh
scripts/mosquitto.sh && . scripts/environment.sh
mkdir -p "$cache"
failed=0 told=()
for version in ${EDGESERVE_PYTHONS:-3.10 3.13}; do
  if ! python=$(find_python "$version"); then
    told+=("Python $version: not run, there is no python$version with venv on PATH or in pyenv")
    [ "${EDGESERVE_REQUIRE_PYTHONS:-}" = 1 ] && failed=1
    continue
  fi
  install "$version" "$python"
  say "testing with Python $version"
  log=$cache/$version.log
  "$cache/$version/bin/python" -m pytest -p no:cacheprovider -n logical --maxprocesses 4 --dist loadfile \
    --no-loadscope-reorder --max-worker-restart 0 "${slow[@]/#/--ignore=}" "$@" "${tests[@]}" 2>&1 | tee "$log" || failed=1
  told+=("Python $version: $(tail -n 1 "$log" | tr -d '=' | sed 's/^ *//; s/ *$//')")
done
printf '%s\n' "${told[@]}"
exit "$failed"
