#!/usr/bin/env bash
# Make onnx2tf's own environment for the tests in .cache/onnx2tf, where there is a Python from 3.12 on. Without one, the
# tests that convert ONNX to TFLite are skipped. Does nothing when it is there.
set -euo pipefail
cd "$(dirname "$0")/.."

version=2.6.9
cache=.cache/onnx2tf
stamp=$cache/.onnx2tf-$version
say() { printf '%s\n' "$*" >&2; }

[ -e "$stamp" ] && exit 0

# Pythons on PATH, then those of pyenv, whose shims only start when their version is switched on.
find_python() {
  for candidate in python3.12 python3.13 python3.14 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[234]*/bin/python3; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1 || continue
    printf '%s\n' "$candidate"
    return
  done
  return 1
}

if ! python=$(find_python); then
  say "note: no Python 3.12 to 3.14: tests that convert ONNX to TFLite are skipped"
  exit 0
fi
say "installing onnx2tf $version into $cache (about 600 MB; a minute or two)"
rm -rf "$cache"
mkdir -p "$(dirname "$cache")"
"$python" -m venv "$cache"
if ! "$cache/bin/python" -m pip install --quiet --disable-pip-version-check "onnx2tf==$version"; then
  rm -rf "$cache"
  say "note: onnx2tf could not be installed: tests that convert ONNX to TFLite are skipped"
  exit 0
fi
touch "$stamp"
