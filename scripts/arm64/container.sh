#!/usr/bin/env bash
# Become process 1 of a container: what `docker run --read-only --tmpfs /tmp --network none --security-opt no-new-privileges`
# sets up, without an engine. To be started in mount, process and network namespaces of its own (container.py):
#   container.sh ROOTFS USER:GROUP [HOST_FOLDER:FOLDER:ro|rw ...] -- COMMAND...
set -euo pipefail
root=$1 user=$2
shift 2

ip link set lo up
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmpfs "$root/tmp"
mkdir -m 777 "$root/tmp/home"
while [ "$1" != -- ]; do
  IFS=: read -r from to mode <<< "$1"
  mount --bind "$from" "$root$to"
  if [ "$mode" = ro ]; then mount -o remount,bind,ro "$root$to"; fi
  shift
done
shift
cd /
exec setpriv --no-new-privs chroot --userspec="$user" "$root" "$@"
