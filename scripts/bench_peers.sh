#!/usr/bin/env bash
# Make the environments of the peers that `make bench-serving` compares with, one each, in .cache/bench-peers/NAME.
# Does nothing for those that are there. One that cannot be installed leaves its reason in NAME.reason; the others go on.
#
#     scripts/bench_peers.sh [NAME ...]        # all when none is named
set -euo pipefail
cd "$(dirname "$0")/.."

cache=.cache/bench-peers
python=.venv/bin/python # the same version of Python as edgeserve's
say() { printf '%s\n' "$*" >&2; }

# Every peer computes with the onnxruntime that edgeserve has, so that only the servers differ.
runtime=onnxruntime==$(.venv/bin/python -c 'import importlib.metadata as m; print(m.version("onnxruntime"))')

packages_of() {
  case $1 in
    mlserver) echo "mlserver==1.7.1 $runtime" ;;
    kserve) echo "kserve==0.21.0 $runtime" ;;
    litserve) echo "litserve==0.2.19 $runtime" ;;
    bentoml) echo "bentoml==1.4.39 uvloop==0.23.0 httptools $runtime" ;;
    fastapi) echo "fastapi==0.165.0 uvicorn[standard]==0.54.0 $runtime" ;;
    tritonserver) echo "nvidia-pytriton==0.7.0 $runtime" ;;
    *) return 1 ;;
  esac
}

# The tritonserver binary is linked against the libpython of Debian 12 and Ubuntu's deadsnakes: 3.8 to 3.12 in /usr/bin.
python_of() {
  [ "$1" = tritonserver ] || { echo "$python"; return; }
  for candidate in /usr/bin/python3.11 /usr/bin/python3.12 /usr/bin/python3.10; do
    [ -x "$candidate" ] && "$candidate" -c 'import ensurepip, venv' 2>/dev/null && { echo "$candidate"; return; }
  done
  return 1
}

install() {
  name=$1
  packages=$(packages_of "$name") || { say "error: no peer is called $name"; exit 2; }
  stamp=$cache/$name/.ready-$(printf '%s' "$packages" | cksum | tr -d ' ')
  [ -e "$stamp" ] && return
  rm -rf "${cache:?}/$name" "$cache/$name.reason"
  if ! base=$(python_of "$name"); then
    say "note: $name is left out: no Python of the system that it can be linked with"
    echo "no Python of the system (3.10 to 3.12, with venv) that its binary can be linked with" > "$cache/$name.reason"
    return
  fi
  say "installing $name into $cache/$name"
  "$base" -m venv "$cache/$name"
  # shellcheck disable=SC2086 - several packages
  if "$cache/$name/bin/python" -m pip install --quiet --disable-pip-version-check $packages 2> "$cache/$name.log"; then
    touch "$stamp"
  else
    rm -rf "${cache:?}/$name"
    said=$({ grep -m1 -i error "$cache/$name.log" || tail -1 "$cache/$name.log"; } | sed -E 's#https?://[^ ]*#...#g')
    say "note: $name is left out: $said"
    echo "pip could not install it: $said" > "$cache/$name.reason"
  fi
  rm -f "$cache/$name.log"
}

mkdir -p "$cache"
for name in "${@:-}"; do
  [ -n "$name" ] && install "$name"
done
[ $# -gt 0 ] || for name in mlserver kserve litserve bentoml fastapi tritonserver; do install "$name"; done
