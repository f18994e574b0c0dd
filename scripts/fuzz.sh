#!/bin/sh
# Fuzz the server's parsers: by coverage with atheris in an environment of its own where it installs (Linux, Python
# 3.11 to 3.13), else by the kinds of answers. Arguments go to scripts/fuzz/run.py.
set -eu
cd "$(dirname "$0")/.."
venv=.cache/fuzz-venv
if [ ! -x "$venv/bin/python" ]; then
  .venv/bin/python -m venv "$venv"
  packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  own=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "import site; site.addsitedir('$packages')" > "$own/project.pth"
  "$venv/bin/python" -m pip install --quiet atheris || true
fi
if "$venv/bin/python" -c 'import atheris' 2> /dev/null; then
  exec "$venv/bin/python" scripts/fuzz/run.py --engine coverage "$@"
fi
echo "atheris is not here: inputs are judged by the kinds of answers" >&2
exec .venv/bin/python scripts/fuzz/run.py "$@"
