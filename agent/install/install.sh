#!/bin/sh
# Installs the edgeserve agent from the offline bundle that this script lies in (`make bundle PROFILE=...`), on the device
# itself or into the tree of a golden image. Needs no network, no pip and no compiler. docs/install.md explains.
#
#   install.sh [--config agent.toml] [--python FILE] [--no-start] [--wait SECONDS]
#   install.sh --root DIR [--config agent.toml] [--python FILE]     DIR is the root of an image; nothing is started
#   install.sh --uninstall [--purge] [--root DIR]                   --purge also removes state, configuration and user
#
# Run again it upgrades: state and configuration stay, and the version before is kept until the new one has started.
set -eu
umask 022
LC_ALL=C
export LC_ALL

here=$(cd "$(dirname "$0")" && pwd)
home=/opt/edgeserve
etc=/etc/edgeserve
state=/var/lib/edgeserve
units=/etc/systemd/system
user=edgeserve
agent=edgeserve-agent.service
first=edgeserve-first-release.service

root='' config='' python='' wait_s=180 start=yes action=install purge=no created=''

say() { printf '%s\n' "$*"; }

die() { # MESSAGE [HINT] [EXIT CODE]
  printf 'error: %s\n' "$1" >&2
  [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2
  exit "${3:-2}"
}

usage() { sed -n '/^# *install.sh/s/^# *//p' "$0"; }

# The bundle ---------------------------------------------------------------------------------------

value() { sed -n "s/^$1=//p" "$here/bundle.conf"; }

verify_bundle() {
  [ -f "$here/SHA256SUMS" ] || die "there is no bundle at $here" "run the install.sh that lies in an unpacked bundle"
  listed=$(sed 's/^[0-9a-f]*  //' "$here/SHA256SUMS" | sort)
  there=$(cd "$here" && find . -type f ! -path ./SHA256SUMS | sed 's#^\./##' | sort)
  [ "$listed" = "$there" ] || die "the files of the bundle are not those of its SHA256SUMS" "unpack it anew, into an empty folder"
  (cd "$here" && sha256sum --check --quiet --strict SHA256SUMS >&2) || die "the bundle is damaged" "bring it here again"
  version=$(value id) wanted=$(value python) machine=$(value machine) glibc=$(value glibc)
}

# The system it is for -----------------------------------------------------------------------------

check_system() {
  [ "$(id -u)" = 0 ] || die "only root can install" "run it with sudo"
  [ -f "$root/etc/passwd" ] || die "there is no $root/etc/passwd" "--root is the root folder of an image's file system"
  [ -n "$python" ] || python=/usr/bin/python$wanted
  # In an image it may be a link that leads somewhere only from inside.
  [ -e "$root$python" ] || [ -L "$root$python" ] || die "this bundle is for Python $wanted, and there is no $root$python" \
    "make a bundle for this system's Python, or name another $wanted with --python"
  if [ -z "$root" ]; then
    [ "$(uname -m)" = "$machine" ] || die "this bundle is for $machine, and this is $(uname -m)" "make one for this device's profile"
    found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || die "$python does not run"
    [ "$found" = "$wanted" ] || die "this bundle is for Python $wanted, and $python is $found" "make a bundle for Python $found"
    found=$(getconf GNU_LIBC_VERSION | sed 's/.* //')
    lowest=$(printf '%s\n%s\n' "$glibc" "$found" | sort -t. -k1,1n -k2,2n | head -n 1)
    [ "$lowest" = "$glibc" ] || die "this bundle is for glibc $glibc or newer, and here is $found" "make one for this system"
    runner=$python
  else
    runner=$(command -v "python$wanted" || command -v python3) || die "an image needs a python3 on this machine" "install python3"
  fi
}

# mkdir -p that remembers what it made, so that uninstalling leaves nothing.
make_dir() {
  [ ! -d "$root$1" ] || return 0
  make_dir "$(dirname "$1")"
  mkdir "$root$1"
  created="$1
$created"
}

# A virtual environment without pip: the wheels are what pip would unpack, and they were resolved when the bundle was made.
unpack() {
  target=$root$home/versions/$version
  if [ -f "$target/complete" ]; then
    say "version $version is there already"
    return
  fi
  say "unpacking version $version to $target"
  make_dir "$home/versions"
  rm -rf "$target" # of an installation that was cut off
  site=$target/lib/python$wanted/site-packages
  mkdir -p "$site" "$target/bin"
  for wheel in "$here"/wheels/*.whl; do "$runner" -m zipfile -e "$wheel" "$site"; done
  # What only compiles, converts or tests.
  find "$site" -depth -type d \( -name tests -o -name include \) -exec rm -rf {} +
  find "$site" -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.a' \) -exec rm -f {} +
  rm -rf "$site"/numpy/f2py "$site"/onnxruntime/transformers "$site"/onnxruntime/tools "$site"/onnxruntime/quantization \
    "$site"/onnxruntime/datasets
  {
    say "home = $(dirname "$python")"
    say "include-system-site-packages = $(value system_packages)"
    say "version = $wanted"
  } > "$target/pyvenv.cfg"
  ln -s "$python" "$target/bin/python"
  ln -s python "$target/bin/python3"
  printf '#!%s/current/bin/python\nimport sys\n\nfrom edgeserve.cli.main import main\n\nsys.exit(main())\n' "$home" \
    > "$target/bin/edgeserve"
  chmod 755 "$target/bin/edgeserve"
  cp -R "$here/systemd" "$target/systemd"
  # The agent may not write here: without compiled modules each start would compile them again.
  if [ "$("$runner" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "$wanted" ]; then
    "$runner" -m compileall -q --invalidation-mode unchecked-hash -s "$root" "$site" >/dev/null || true # templates are no Python
  else
    say "note: modules are not compiled, for want of a python$wanted on this machine: starts take longer"
  fi
  chown -R 0:0 "$target"
  sync
  touch "$target/complete"
}

add_user() {
  grep -q "^$user:" "$root/etc/passwd" && return
  groups=$(sed -n 's/^\(video\|render\):.*/\1/p' "$root/etc/group" | paste -s -d , -)
  set -- --system --user-group --no-create-home --home-dir "$state" --shell /usr/sbin/nologin
  [ -z "$groups" ] || set -- "$@" --groups "$groups" # the nodes of accelerators belong to them
  [ -z "$root" ] || set -- "$@" --prefix "$root"
  useradd "$@" "$user"
}

add_config() {
  if [ ! -d "$root$etc" ]; then
    make_dir "$etc"
    chmod 750 "$root$etc"
    chown "0:$(gid)" "$root$etc"
  fi
  [ -n "$config" ] || [ ! -f "$here/agent.toml" ] || config=$here/agent.toml
  if [ -e "$root$etc/agent.toml" ]; then
    say "$root$etc/agent.toml is kept as it is"
  elif [ -n "$config" ]; then
    (umask 077 && cat "$config" > "$root$etc/agent.toml.new") # it holds the device's token
    chown "0:$(gid)" "$root$etc/agent.toml.new"
    chmod 640 "$root$etc/agent.toml.new"
    mv "$root$etc/agent.toml.new" "$root$etc/agent.toml"
  fi
}

gid() { sed -n "s/^$user:[^:]*:\([0-9]*\):.*/\1/p" "$root/etc/group"; }

add_release() {
  [ -f "$here/release.tar" ] || return 0
  cp "$here/release.tar" "$root$home/release.tar.new"
  mv "$root$home/release.tar.new" "$root$home/release.tar"
}

# Units are copies: /opt may be a file system that is not there yet when systemd reads them.
add_units() { # VERSION
  from=$root$home/versions/$1/systemd
  make_dir "$units/multi-user.target.wants"
  cp "$from/$agent" "$root$units/$agent"
  rm -rf "$root$units/$agent.d/accelerator.conf"
  if [ -f "$from/accelerator.conf" ]; then
    make_dir "$units/$agent.d"
    cp "$from/accelerator.conf" "$root$units/$agent.d/accelerator.conf"
  fi
  ln -sfn "$units/$agent" "$root$units/multi-user.target.wants/$agent"
  if [ -f "$root$home/release.tar" ]; then
    make_dir "$units/$agent.wants"
    cp "$from/$first" "$root$units/$first"
    ln -sfn "$units/$first" "$root$units/$agent.wants/$first"
  fi
}

switch_to() { # VERSION
  ln -sfn "versions/$1" "$root$home/current.new"
  mv -T "$root$home/current.new" "$root$home/current"
}

# Starting -----------------------------------------------------------------------------------------

has_systemd() { [ -z "$root" ] && [ -d /run/systemd/system ] && command -v systemctl >/dev/null; }

# Another word in each life of the agent.
life() { systemctl show --property InvocationID --value "$agent" || true; }

# Whether the agent says within the time that it serves (Type=notify: active means ready), in a new life of it.
starts() {
  systemctl daemon-reload
  last=$(life) lives=0
  systemctl restart --no-block "$agent"
  waited=0
  while [ "$waited" -lt "$wait_s" ]; do
    sleep 1
    waited=$((waited + 1))
    now=$(life)
    [ "$now" = "$last" ] || lives=$((lives + 1))
    last=$now
    [ "$lives" -gt 0 ] || continue # it is the life before
    [ "$(systemctl is-active "$agent" || true)" != active ] || return 0
    [ "$lives" -le 3 ] || return 1 # nothing serves meanwhile
  done
  return 1
}

start_agent() { # THE VERSION BEFORE
  keep=$1
  [ -z "$root" ] || keep=''
  if [ ! -e "$root$etc/agent.toml" ]; then
    say "next: put agent.toml (\`edgeserve fleet enroll\` writes it) at $root$etc/agent.toml, owner root:$user, mode 0640"
    [ -n "$root" ] || say "then: systemctl daemon-reload && systemctl start $agent"
  elif [ "$start" = yes ] && has_systemd; then
    say "starting $agent"
    if ! starts; then
      systemctl status --no-pager --lines 20 "$agent" >&2 || true
      if [ -n "$1" ] && [ "$1" != "$version" ]; then
        say "going back to version $1" >&2
        add_units "$1"
        switch_to "$1"
        starts || say "it does not start either" >&2
        die "version $version did not serve within $wait_s s; version $1 is installed as before" "see: journalctl -u $agent" 1
      fi
      die "the agent did not serve within $wait_s s" "see: journalctl -u $agent" 1
    fi
    say "the agent serves"
    keep=''
  else
    say "nothing was started"
  fi
  # The version before is at work until the new one is.
  for each in "$root$home"/versions/*; do
    case ${each##*/} in "$version" | "$keep") ;; *) rm -rf "$each" ;; esac
  done
}

install_all() {
  verify_bundle
  check_system
  [ -z "$config" ] || [ -f "$config" ] || die "there is no $config" "--config names the agent.toml of this device"
  before=$(readlink "$root$home/current" 2>/dev/null | sed 's#.*/##' || true)
  [ -d "$root$home/versions/${before:-none}" ] || before=''
  make_dir "$home"
  unpack
  add_user
  add_config
  add_release
  add_units "$version"
  make_dir /usr/local/bin
  ln -sfn "$home/current/bin/edgeserve" "$root/usr/local/bin/edgeserve"
  cp "$here/install.sh" "$root$home/install.sh.new"
  mv "$root$home/install.sh.new" "$root$home/install.sh"
  printf '%s' "$created" >> "$root$home/created"
  switch_to "$version"
  start_agent "$before"
  say "installed version $version; to remove it: sh $home/install.sh --uninstall"
}

# Uninstalling -------------------------------------------------------------------------------------

uninstall() {
  [ "$(id -u)" = 0 ] || die "only root can uninstall" "run it with sudo"
  made=''
  [ ! -f "$root$home/created" ] || made=$(cat "$root$home/created")
  if has_systemd; then systemctl stop "$agent" "$first" 2>/dev/null || true; fi
  rm -rf "$root$units/$agent.d/accelerator.conf" "$root$units/$agent" "$root$units/$first" "$root$units/$agent.wants/$first" \
    "$root$units/multi-user.target.wants/$agent"
  for folder in "$agent.d" "$agent.wants"; do rmdir "$root$units/$folder" 2>/dev/null || true; done
  if has_systemd; then systemctl daemon-reload; fi
  if [ "$(readlink "$root/usr/local/bin/edgeserve" 2>/dev/null)" = "$home/current/bin/edgeserve" ]; then
    rm "$root/usr/local/bin/edgeserve"
  fi
  rm -rf "$root$home"
  if [ "$purge" = yes ]; then
    rm -rf "$root$etc" "$root$state"
    set --
    [ -z "$root" ] || set -- --prefix "$root"
    if grep -q "^$user:" "$root/etc/passwd"; then userdel "$@" "$user"; fi
    # userdel does it only where login.defs says so.
    if grep -q "^$user:" "$root/etc/group"; then groupdel "$@" "$user"; fi
  else
    say "kept: $root$state (models, journal), $root$etc (configuration) and the user $user; --purge removes them, too"
  fi
  for folder in $made; do rmdir "$root$folder" 2>/dev/null || true; done
  say "uninstalled"
}

while [ $# -gt 0 ]; do
  case $1 in
    --root | --config | --python | --wait)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --root) root=$(cd "$2" 2>/dev/null && pwd) || die "there is no folder $2" ;;
        --config) config=$2 ;;
        --python) python=$2 ;;
        --wait) wait_s=$2 ;;
      esac
      shift
      ;;
    --no-start) start=no ;;
    --uninstall) action=uninstall ;;
    --purge) purge=yes ;;
    -h | --help) usage && exit ;;
    *) die "unknown option $1" "$(usage)" ;;
  esac
  shift
done
[ "$root" != / ] || root=''
case $wait_s in *[!0-9]* | '') die "--wait $wait_s is not a number of seconds" ;; esac
[ "$purge" = no ] || [ "$action" = uninstall ] || die "--purge goes with --uninstall"
if [ "$action" = install ]; then install_all; else uninstall; fi
