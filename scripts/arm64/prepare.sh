# Sourced by scripts/arm64.sh: one function for each thing that it needs.
# shellcheck shell=bash disable=SC2154 - cache, run, arch, dockerfile, entry and binfmt are the script's

# Those of a minimal Debian that are missing here.
install_tools() {
  local missing=() pair
  for pair in buildah:buildah mmdebstrap:mmdebstrap ip:iproute2 setpriv:util-linux; do
    command -v "${pair%%:*}" > /dev/null || missing+=("${pair##*:}")
  done
  if [ ${#missing[@]} = 0 ]; then return; fi
  step "installing ${missing[*]} (apt)"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > "$run/apt.log" 2>&1 || {
    tail -5 "$run/apt.log" >&2
    die "apt could not install ${missing[*]}" "see above"
  }
}

# The mirror that this machine installs Debian from.
debian_mirror() {
  local release
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  # shellcheck disable=SC2016 - apt's own variables
  apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | awk -v r="$release" '$2 == r { print $1; exit }'
}

# qemu of Debian 13: onnxruntime crashes under Debian 12's (7.2), which shows it the host's /proc/cpuinfo. It is linked
# statically and only unpacked. Its package comes by lists of its own: the system's sources stay as they are.
fetch_emulator() {
  if [ -x "$emulator" ]; then return; fi
  step "fetching the emulator"
  local lists=$run/trixie options
  mkdir -p "$lists/lists/partial" "$lists/archives/partial"
  echo "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(debian_mirror) trixie main" > "$lists/sources.list"
  options=(-qq -o "Dir::Etc::SourceList=$lists/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$lists/lists"
    -o "Dir::Cache=$lists" -o APT::Sandbox::User=root -o Acquire::Languages=none)
  apt-get "${options[@]}" update
  (cd "$lists" && apt-get "${options[@]}" download qemu-user)
  dpkg-deb --fsys-tarfile "$lists"/qemu-user_*.deb | tar -x -C "$lists" ./usr/bin/qemu-aarch64
  mv "$lists/usr/bin/qemu-aarch64" "$emulator.new"
  mv "$emulator.new" "$emulator"
}

# The kernel starts programs for aarch64 by it; F: opened now, so it is found in any root; P: argv[0] stays.
register_emulator() {
  [ -e "$binfmt/register" ] || mount -t binfmt_misc none "$binfmt" || die "the kernel has no binfmt_misc" "modprobe binfmt_misc"
  # Left there by a run that was killed.
  if [ -e "$binfmt/$entry" ]; then echo -1 > "$binfmt/$entry"; fi
  local magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  printf '%s' ":$entry:M:0:$magic:$mask:$emulator:PF" > "$binfmt/register"
}

builder() { buildah --root "$cache/storage" --runroot "$run/buildah" "$@"; }

# Stand-ins for python:3.11-slim, which comes from an image registry: the same Debian and the same Python, unpacked and not
# set up, so that nothing is emulated. `slim` is what the image stands on, `pip` what its native stage runs in.
packages_of() {
  printf '%s' bash,base-files,base-passwd,ca-certificates,coreutils,dash,findutils,libc-bin,libgomp1,libpython3-stdlib,libstdc++6
  printf '%s' ,python3,python3-minimal
  if [ "$1" = pip ]; then printf '%s' ,grep,python3-pip,sed; fi
}

base_image() { # KIND ARCH: its name, which changes with what is in it
  echo "localhost/edgeserve-$1:$2-$(packages_of "$1" | cksum | cut -d' ' -f1)"
}

make_base() {
  local kind=$1 arch=$2 name rootfs=$run/$1-$2 keyring=/usr/share/keyrings/debian-archive-keyring.gpg container
  name=$(base_image "$kind" "$arch")
  if builder inspect --type image "$name" > /dev/null 2>&1; then return; fi
  step "unpacking a base image: $kind, $arch"
  mmdebstrap --quiet --mode=root --arch="$arch" --variant=extract --include="$(packages_of "$kind")" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm "$rootfs" "deb [signed-by=$keyring] $(debian_mirror) bookworm main" 2> "$rootfs.log" || {
    cat "$rootfs.log" >&2
    die "no base image $name" "see above"
  }
  mkdir -p "$rootfs"/{proc,sys,dev,tmp,run}
  chmod 1777 "$rootfs/tmp"
  cp "$rootfs/usr/share/base-passwd/passwd.master" "$rootfs/etc/passwd"
  cp "$rootfs/usr/share/base-passwd/group.master" "$rootfs/etc/group"
  cat "$rootfs"/usr/share/ca-certificates/mozilla/*.crt > "$rootfs/etc/ssl/certs/ca-certificates.crt"
  rm -rf "$rootfs"/usr/share/{man,doc,locale,info,lintian} "$rootfs"/var/{cache,lib}/apt
  ldconfig -r "$rootfs" 2> /dev/null || true
  container=$(builder from --arch "$arch" scratch)
  builder copy --quiet "$container" "$rootfs" / > /dev/null
  builder config --arch "$arch" --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3 "$container"
  builder commit --quiet --rm "$container" "$name" > /dev/null
  rm -rf "$rootfs"
}

# buildah 1.28 wants the build's platform said, HEALTHCHECK the docker format, and a machine without seccomp or cgroups chroot.
build_image() {
  image=localhost/edgeserve:$arch
  step "building $dockerfile"
  local secrets=() ca=/etc/ssl/certs/ca-certificates.crt index
  if [ -s "$ca" ]; then secrets+=(--secret "id=ca,src=$ca"); fi
  index=$(.venv/bin/python -m pip config get global.index-url 2> /dev/null || true)
  if [ -n "$index" ]; then
    printf '[global]\nindex-url = %s\n' "$index" > "$run/pip.conf"
    secrets+=(--secret "id=pip,src=$run/pip.conf")
  fi
  builder bud --quiet --isolation chroot --format docker --layers --pull-never --arch "$arch" \
    --build-arg BUILDPLATFORM=linux/amd64 \
    --build-arg PYTHON_IMAGE="$(base_image slim "$arch")" \
    --build-arg BUILDER_IMAGE="$(base_image pip amd64)" \
    "${secrets[@]}" -t "$image" -f "$dockerfile" . > "$run/build.log" 2>&1 || {
    cat "$run/build.log" >&2
    die "$dockerfile was not built" "see above"
  }
  builder push --quiet "$image" "oci:$run/oci:image" > /dev/null
}

prove_image() {
  step "proving it"
  local container rootfs
  container=$(builder from --pull-never --arch "$arch" "$image")
  rootfs=$(builder mount "$container")
  mkdir -p "$rootfs/models" "$rootfs/etc/edgeserve"
  builder inspect --type image "$image" > "$run/image.json"
  .venv/bin/python scripts/arm64/prove.py --rootfs "$rootfs" --image "$run/image.json" --layers "$run/oci" --dockerfile "$dockerfile" --arch "$arch" \
    --scratch "$run" ${EDGESERVE_ARM64_CPU:+--cpu "$EDGESERVE_ARM64_CPU"}
  builder rm "$container" > /dev/null
}
