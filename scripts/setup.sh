#!/usr/bin/env bash
# Make .venv with the extra named as argument (demo, dev) and see that the mosquitto broker is there.
# Does nothing when both are as pyproject.toml wants them. For dev also onnx2tf's environment, and what
# EDGESERVE_TEST_PACKAGES names: big packages (a CPU build of torch, tensorflow) whose tests are skipped without them.
set -euo pipefail
cd "$(dirname "$0")/.."

extra=${1:?usage: scripts/setup.sh demo|dev}
python=${PYTHON:-python3}
more=
[ "$extra" = dev ] && more=${EDGESERVE_TEST_PACKAGES:-}
stamp=.venv/.edgeserve-$extra-$( (cat pyproject.toml; printf '%s' "$more") | cksum | tr -d ' ')

say() { printf '%s\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo "$@"; else return 1; fi
}

make_venv() {
  command -v "$python" >/dev/null || { say "error: $python is not installed; install Python 3.10 or newer"; exit 1; }
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { say "error: $python is older than 3.10; set PYTHON="; exit 1; }
  "$python" -m venv .venv >/dev/null 2>&1 && return
  # Debian and Ubuntu ship venv in a package of its own.
  rm -rf .venv
  package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
  say "installing $package (apt)"
  if command -v apt-get >/dev/null && as_root apt-get update -qq && as_root apt-get install -y -qq "$package" >/dev/null; then
    "$python" -m venv .venv
  else
    say "error: this Python has no venv module; install the package $package"
    exit 1
  fi
}

if [ ! -e "$stamp" ]; then
  [ -x .venv/bin/python ] || make_venv
  say "installing edgeserve[$extra] into .venv (about 1 GB with the compilers; a minute or two)"
  # shellcheck disable=SC2086 - several packages
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extra]" $more
  rm -f .venv/.edgeserve-"$extra"-*
  touch "$stamp"
fi

scripts/mosquitto.sh
if [ "$extra" = dev ]; then scripts/onnx2tf.sh; scripts/systemd.sh; fi
