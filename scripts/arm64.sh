#!/usr/bin/env bash
# Build Dockerfile.arm64 and prove the image on an emulated processor, on any Debian machine (x86-64, as root), without
# a container engine and without an image registry. docs/images.md says what is shown.
#   scripts/arm64.sh [DOCKERFILE]     EDGESERVE_SKIP_ARM64="reason" skips it and says why
# Kept in .cache/arm64: the emulator, the base images and the layers. Debian packages that are missing get installed;
# all else that is set up here ends with the script.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $1"; say "hint: $2"; exit 1; }

if [ -n "${EDGESERVE_SKIP_ARM64:-}" ]; then
  say "skipped: the arm64 image is neither built nor run: $EDGESERVE_SKIP_ARM64"
  exit 0
fi
[ "$(id -u)" = 0 ] || die "mounts and chroots need root" "sudo make arm64, or EDGESERVE_SKIP_ARM64=\"reason\""
[ "$(uname -m)" = x86_64 ] || die "this emulates arm64 on x86-64" "on $(uname -m) use docker buildx build -f Dockerfile.arm64"
[ -r /etc/debian_version ] || die "this is no Debian machine" "use docker buildx build -f Dockerfile.arm64"

# What is mounted in a namespace of its own goes with it, however this ends.
if [ -z "${EDGESERVE_ARM64_NAMESPACE:-}" ]; then
  EDGESERVE_ARM64_NAMESPACE=1 exec unshare --mount --propagation private "$BASH" "$0" "$@"
fi
dockerfile=${1:-Dockerfile.arm64}
case $dockerfile in *arm64) arch=arm64 ;; *) arch=amd64 ;; esac
cache=$PWD/.cache/arm64
emulator=$cache/qemu-aarch64
entry=edgeserve-arm64 # of the kernel's table
binfmt=/proc/sys/fs/binfmt_misc
mkdir -p "$cache"
# One at a time on a machine: the kernel's entry has one name.
exec 9> "/run/$entry.lock"
flock -n 9 || { say "waiting for another run on this machine"; flock 9; }
run=$(mktemp -d)
trap 'status=$?; forget; rm -rf --one-file-system "$run"; exit $status' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

jobs=()
forget() { # what would outlive this script
  if [ ${#jobs[@]} -gt 0 ]; then kill "${jobs[@]}" 2> /dev/null || true; fi
  if [ -e "$binfmt/$entry" ]; then echo -1 > "$binfmt/$entry"; fi
  if [ -e "$run/storage-used" ]; then umount --recursive --lazy "$cache/storage/overlay" 2>/dev/null || true; fi
}
began=$SECONDS
step() { say "[$((SECONDS - began)) s] $*"; }

# shellcheck source=scripts/arm64/prepare.sh
. scripts/arm64/prepare.sh
install_tools
# Three downloads side by side.
touch "$run/storage-used"
make_base pip amd64 & jobs=($!)
make_base slim "$arch" & jobs+=($!)
if [ "$arch" = arm64 ]; then
  fetch_emulator
  register_emulator
fi
for job in "${jobs[@]}"; do wait "$job"; done
build_image
prove_image
step done
