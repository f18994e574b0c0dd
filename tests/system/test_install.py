"""install.sh for real: into the tree of an image, and on this machine behind an overlay that takes all it writes."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
from bundle import sums, system_of, write_bundle

from edgeserve.contracts.errors import InputError
from edgeserve_devices.profiles import load_profile

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can install, on Linux"),
    pytest.mark.skipif(shutil.which("useradd") is None, reason="useradd is not installed (package passwd)"),
]
PYTHON = "{}.{}".format(*sys.version_info[:2])
PROFILE = {"x86_64": "x86-64", "aarch64": "raspberry-pi-5"}.get(platform.machine(), "")
INTERPRETER = str(Path(sys.executable).resolve())
ACCOUNTS = {"passwd", "group", "shadow", "gshadow"}
BACKUPS = {f"etc/{name}-" for name in (*ACCOUNTS, "subuid", "subgid")} | {"etc/.pwd.lock", "etc/subuid", "etc/subgid"}
"""What useradd and userdel themselves leave on any system."""


def wheel(folder: Path, version: str, *, serves: bool = True, beside: dict[str, str] | None = None) -> Path:
    """A wheel of a package in the agent's place: one module, which says whether it serves."""
    path = folder / f"edgeserve-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("edgeserve/cli/main.py", f"def main():\n    print({version!r})\n    return 0\n")
        archive.writestr("edgeserve_agent/__main__.py", f"raise SystemExit({0 if serves else 1})\n")
        archive.writestr(f"edgeserve-{version}.dist-info/METADATA", f"Name: edgeserve\nVersion: {version}\n")
        for name, content in (beside or {}).items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def bundle(tmp_path) -> Callable[..., Path]:
    """Makes unpacked bundles."""
    if not PROFILE:
        pytest.skip(f"no device profile for {platform.machine()}")
    glibc = platform.libc_ver()[1] or "2.17"

    def make(version: str = "1.0", *, serves: bool = True, python: str = PYTHON, glibc: str = glibc, **given) -> Path:
        profile = load_profile(PROFILE)
        folder = tmp_path / f"bundle-{version}-{python}-{glibc}"
        folder.mkdir()
        wheels = [wheel(folder, version, serves=serves)]
        system = system_of(profile, python=python, glibc=glibc)
        write_bundle(
            profile, system, wheels, folder / "b", runtimes=("onnxruntime",), config=given.get("config"),
            release=given.get("release"),
        )  # fmt: skip
        return folder / "b"

    return make


@pytest.fixture
def image(tmp_path) -> Path:
    """The root folder of a small image."""
    root = tmp_path / "image"
    for folder in ("etc", "usr/bin", "opt"):
        (root / folder).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nvideo:x:44:\n")
    (root / "etc/shadow").write_text("root:*:1:0:99999:7:::\n")
    (root / "etc/gshadow").write_text("root:*::\nvideo:!::\n")
    for path in ("etc/shadow", "etc/gshadow"):
        (root / path).chmod(0o640)
    (root / f"usr/bin/python{PYTHON}").symlink_to("/nowhere/but/in/the/image")
    return root


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text('[device]\nid = "default.box-1"\n')
    return path


def install(folder: Path, *arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        ["sh", folder / "install.sh", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def tree(root: Path) -> dict[str, object]:
    """Every path below a folder with its kind, mode, owner and content."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name in BACKUPS:
            continue
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        found[name] = (stat.filemode(status.st_mode), status.st_uid, status.st_gid, content)
    return found


def test_an_image_gets_all_that_the_agent_needs_and_purging_leaves_it_as_it_was(bundle, image, config):
    before = tree(image)
    folder = bundle()
    said = install(folder, "--root", image, "--config", config)
    version = next(line for line in (folder / "bundle.conf").read_text().split() if line.startswith("id=1.0-"))[3:]
    assert f"installed version {version}" in said
    opt = image / "opt/edgeserve"
    assert (opt / "current").readlink() == Path(f"versions/{version}")
    assert (opt / "current/bin/python").readlink() == Path(f"/usr/bin/python{PYTHON}")
    assert list(opt.rglob("main.*.pyc")), "a start must not compile"
    unit = image / "etc/systemd/system/edgeserve-agent.service"
    assert "ExecStart=/opt/edgeserve/current/bin/python " in unit.read_text()
    wanted = image / "etc/systemd/system/multi-user.target.wants/edgeserve-agent.service"
    assert wanted.readlink() == Path("/etc/systemd/system/edgeserve-agent.service")
    user = next(line for line in (image / "etc/passwd").read_text().splitlines() if line.startswith("edgeserve:"))
    assert user.endswith(":/var/lib/edgeserve:/usr/sbin/nologin")
    assert "video:x:44:edgeserve\n" in (image / "etc/group").read_text()
    secret = (image / "etc/edgeserve/agent.toml").stat()
    assert (stat.S_IMODE(secret.st_mode), secret.st_uid, secret.st_gid) == (0o640, 0, int(user.split(":")[3]))

    once = tree(image)
    assert "is there already" in install(folder, "--root", image)
    assert tree(image) == once

    install(opt, "--root", image, "--uninstall", "--purge")
    assert tree(image) == before


def test_uninstalling_keeps_state_configuration_and_user_and_says_so(bundle, image, config):
    before = tree(image)
    folder = bundle()
    install(folder, "--root", image, "--config", config)
    state = image / "var/lib/edgeserve"
    state.mkdir(parents=True)
    (state / "slots.json").write_text("{}")
    said = install(image / "opt/edgeserve", "--root", image, "--uninstall")
    assert all(word in said for word in ("/var/lib/edgeserve", "/etc/edgeserve", "the user edgeserve", "--purge"))
    left = set(tree(image)) - set(before)
    assert left == {"etc/edgeserve", "etc/edgeserve/agent.toml", "var", "var/lib", "var/lib/edgeserve",
                    "var/lib/edgeserve/slots.json"}  # fmt: skip
    assert "edgeserve:" in (image / "etc/passwd").read_text()

    install(folder, "--root", image)  # again, and what was kept is taken up
    assert (image / "etc/edgeserve/agent.toml").read_text() == config.read_text()
    assert (state / "slots.json").read_text() == "{}"


def test_an_upgrade_keeps_state_and_configuration_and_replaces_the_version(bundle, image, config, tmp_path):
    install(bundle("1.0"), "--root", image, "--config", config)
    state = image / "var/lib/edgeserve"
    state.mkdir(parents=True)
    (state / "slots.json").write_text("{}")
    other = tmp_path / "other.toml"
    other.write_text('[device]\nid = "default.box-2"\n')
    said = install(bundle("2.0"), "--root", image, "--config", other)
    assert "agent.toml is kept as it is" in said
    assert (image / "etc/edgeserve/agent.toml").read_text() == config.read_text()
    assert (state / "slots.json").read_text() == "{}"
    (version,) = (image / "opt/edgeserve/versions").iterdir()
    assert version.name.startswith("2.0-")


def test_an_installation_that_was_cut_off_is_made_anew(bundle, image, config):
    folder = bundle()
    install(folder, "--root", image, "--config", config)
    whole = tree(image)
    version = image / "opt/edgeserve" / (image / "opt/edgeserve/current").readlink()
    (version / "complete").unlink()
    (version / "lib" / f"python{PYTHON}" / "site-packages/edgeserve/cli/main.py").write_text("half")
    install(folder, "--root", image)
    assert tree(image) == whole


def flip(folder: Path) -> None:
    path = next((folder / "wheels").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


def plant(folder: Path) -> None:
    (folder / "wheels/edgeserve-9.0-py3-none-any.whl").write_bytes(b"another's")


def lose(folder: Path) -> None:
    (folder / "systemd/edgeserve-agent.service").unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (flip, "the bundle is damaged"),
        (plant, "not those of its SHA256SUMS"),
        (lose, "not those of its SHA256SUMS"),
    ],
)
def test_a_bundle_that_is_not_whole_installs_nothing(bundle, image, config, harm, words):
    folder = bundle()
    harm(folder)
    before = tree(image)
    said = install(folder, "--root", image, "--config", config, code=2)
    assert words in said
    assert "hint: " in said
    assert tree(image) == before


@pytest.mark.parametrize(
    ("made", "arguments", "words"),
    [
        ({"python": "3.99"}, (), "this bundle is for Python 3.99, and there is no /usr/bin/python3.99"),
        ({"glibc": "2.99"}, ("--python", INTERPRETER), "this bundle is for glibc 2.99 or newer"),
        ({}, ("--root", "/no/such"), "there is no folder /no/such"),
        ({}, ("--root", "/proc/self/task"), "there is no /proc/self/task/etc/passwd"),
        ({}, ("--config", "/no/such.toml", "--python", INTERPRETER), "there is no /no/such.toml"),
        ({}, ("--purge",), "--purge goes with --uninstall"),
        ({}, ("--wait", "soon"), "--wait soon is not a number"),
        ({}, ("--frobnicate",), "unknown option --frobnicate"),
        ({}, ("--config",), "--config needs a value"),
    ],
)
def test_what_cannot_be_installed_is_refused_in_words_before_anything_is_written(bundle, made, arguments, words):
    before = sorted(Path("/opt").glob("edgeserve/**/*"))
    said = install(bundle(**made), *arguments, code=2)
    assert words in said
    assert sorted(Path("/opt").glob("edgeserve/**/*")) == before


def test_a_wheel_that_unpacking_does_not_install_is_not_bundled(tmp_path):
    profile = load_profile("x86-64")
    odd = wheel(tmp_path, "1.0", beside={"edgeserve-1.0.data/scripts/tool": "#!python"})
    with pytest.raises(InputError, match=r"edgeserve-1\.0\.data/scripts/tool"):
        write_bundle(
            profile, system_of(profile, python="3.11", glibc="2.36"), [odd], tmp_path / "b", runtimes=(), config=None,
            release=None,
        )  # fmt: skip


def test_the_list_of_a_bundle_is_that_of_sha256sum(bundle):
    folder = bundle()
    listed = (folder / "SHA256SUMS").read_text()
    assert subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=folder).returncode == 0
    assert len(listed.splitlines()) == len(sums(folder)) - 1


SYSTEMCTL = """#!/bin/sh
# Stands for a service manager as far as install.sh asks it: starts what the unit says, and knows whether it went well.
echo "$*" >> /tmp/asked
case $1 in
  restart)
    rm -f /tmp/active
    date +%N > /tmp/life
    if $(sed -n 's/^ExecStart=//p' /etc/systemd/system/edgeserve-agent.service); then : > /tmp/active; fi
    ;;
  show)
    [ -e /tmp/active ] || date +%N > /tmp/life # started anew again and again
    cat /tmp/life
    ;;
  stop) rm -f /tmp/active ;;
  is-active) [ -e /tmp/active ] && echo active || { echo activating; exit 3; } ;;
esac
"""
ON_THE_DEVICE = """
set -eu
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs none "$1/root/run"
mount -t tmpfs none "$1/root/tmp"
mkdir -p "$1/root/run/systemd/system" "$1/root/tmp/bin"
cp -R "$2"/. "$1/root/tmp"
chmod 755 "$1/root/tmp/bin/systemctl"
PATH=/tmp/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin chroot "$1/root" sh -eu /tmp/steps
find "$1/upper" -mindepth 1 ! -type d -printf '%P\\n' > "$3"
"""


@pytest.fixture
def on_the_device(tmp_path):
    """Runs steps on this machine's own system; what they write is thrown away. Gives what they said and left."""
    probe = tmp_path / "probe"
    probe.mkdir()
    script = 'mount -t tmpfs none "$1" && mkdir "$1/u" "$1/w" "$1/m" && mount -t overlay overlay -o '
    script += '"lowerdir=/,upperdir=$1/u,workdir=$1/w" "$1/m"'
    tried = subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", probe], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this machine has no overlays: {tried.stderr.strip()[:120]}")

    def run(steps: str, folders: dict[str, Path]) -> tuple[str, set[str]]:
        given = tmp_path / "given"
        (given / "bin").mkdir(parents=True)
        (given / "bin/systemctl").write_text(SYSTEMCTL)
        (given / "steps").write_text(steps)
        for name, source in folders.items():
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, given / name)
        mount = tmp_path / "overlay"
        mount.mkdir()
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", ON_THE_DEVICE, "sh", mount, given, tmp_path / "left"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, set((tmp_path / "left").read_text().splitlines())

    return run


def test_on_a_device_the_agent_is_started_and_purging_leaves_nothing(bundle, on_the_device, config):
    steps = f"""
    accounts() {{ (cd /etc && cat {" ".join(sorted(ACCOUNTS))}); }}
    before=$(accounts)
    sh /tmp/new/install.sh --config /tmp/agent.toml --python {INTERPRETER}
    id -un edgeserve
    /usr/local/bin/edgeserve
    setpriv --reuid edgeserve --regid edgeserve --init-groups cat /etc/edgeserve/agent.toml >/dev/null
    sh /opt/edgeserve/install.sh --uninstall --purge
    [ "$before" = "$(accounts)" ]
    for path in /opt/edgeserve /etc/edgeserve /var/lib/edgeserve /usr/local/bin/edgeserve; do [ ! -e $path ]; done
    cat /tmp/asked
    """
    said, left = on_the_device(steps, {"new": bundle(), "agent.toml": config})
    assert "the agent serves\n" in said
    assert "edgeserve\n1.0\n" in said
    assert "\nrestart --no-block edgeserve-agent.service\n" in said
    assert left - {f"etc/{name}" for name in ACCOUNTS} - BACKUPS == set()


def test_an_upgrade_that_does_not_serve_is_taken_back(bundle, on_the_device, config):
    steps = f"""
    sh /tmp/old/install.sh --config /tmp/agent.toml --python {INTERPRETER}
    if sh /tmp/new/install.sh --python {INTERPRETER} --wait 60; then exit 9; else echo "exit code $?"; fi
    readlink /opt/edgeserve/current
    systemctl is-active edgeserve-agent.service
    sh /tmp/newer/install.sh --python {INTERPRETER}
    ls /opt/edgeserve/versions
    """
    bundles = {"old": bundle("1.0"), "new": bundle("2.0", serves=False), "newer": bundle("3.0")}
    said, _left = on_the_device(steps, {**bundles, "agent.toml": config})
    lines = said.split("\n")
    at = lines.index("exit code 1")
    assert lines[at + 1].startswith("versions/1.0-")
    assert lines[at + 2] == "active"
    assert [line for line in lines[at + 3 :] if line.startswith(("1.0-", "2.0-", "3.0-"))] == [lines[-2]]
    assert lines[-2].startswith("3.0-")
