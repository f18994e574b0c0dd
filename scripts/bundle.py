"""Make the offline bundle of a device profile: wheels, units, install.sh, and a configuration and a release if given.

python scripts/bundle.py PROFILE [--runtime NAME ...] [--config agent.toml] [--release RELEASE] [--output DIR]

agent/install/install.sh installs it on a device without a network, and into golden images. docs/install.md explains.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from wheel_matrix import MACHINES, PACKAGES, ROOT, RUN_PIP, System, build_wheel, markers, platforms, reason

from edgeserve.contracts.errors import EdgeServeError, InputError, TransientError
from edgeserve.release.layout import open_release
from edgeserve_devices.profiles import Profile, load_profile

SYSTEMD = ROOT / "agent" / "systemd"
INSTALLER = ROOT / "agent" / "install" / "install.sh"
UNITS = ("edgeserve-agent.service", "edgeserve-first-release.service")
FROM_THE_SYSTEM = ("tensorrt",)
"""Runtimes whose Python package comes with the board's system: the environment must see it."""
WRITE_CODE = ("openvino", "tensorrt")
"""Runtimes that write machine code as they run."""


def system_of(profile: Profile, *, python: str, glibc: str) -> System:
    """What decides which wheels go in; `python` and `glibc` go before the profile's.

    Raises:
        InputError: Neither says it.
    """
    found = System(python or profile.python, glibc or profile.glibc, MACHINES[profile.architecture])
    if not found.python or not found.glibc:
        hint = "say it with --python 3.11 --glibc 2.36"
        raise InputError(f"profile {profile.name} does not say which Python and glibc its system has", hint=hint)
    return found


def download(system: System, requirements: Sequence[str], folder: Path) -> None:
    """Bring the wheels of the requirements, for that system, and of all they need.

    Raises:
        TransientError: pip cannot have them; says why.
    """
    command = [sys.executable, "-c", RUN_PIP, "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--implementation", "cp", "--python-version", system.python]
    for tag in platforms(system):
        command += ["--platform", tag]
    environment = {
        **os.environ,
        "EDGESERVE_MARKERS": json.dumps(markers(system)),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
    }
    done = subprocess.run([*command, *requirements], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"no wheels for Python {system.python}, glibc {system.glibc}, {system.machine}: {reason(done.stderr)}"
        raise TransientError(message, hint="docs/results/wheel-matrix.md says what installs where")


def check_plain(wheel: Path) -> None:
    """See that unpacking a wheel is all there is to installing it: install.sh has no pip.

    Raises:
        InputError: It has files for other places (PyPA, Binary distribution format, the `.data` directory).
    """
    with zipfile.ZipFile(wheel) as archive:
        other = [name for name in archive.namelist() if re.match(r"[^/]+\.data/", name)]
    if other:
        raise InputError(f"{wheel.name} has files for other places than its package: {other[0]}")


def write_bundle(
    profile: Profile,
    system: System,
    wheels: Sequence[Path],
    folder: Path,
    *,
    runtimes: Sequence[str],
    config: Path | None,
    release: Path | None,
) -> str:
    """Fill a folder with what install.sh needs; returns the bundle's id.

    Raises:
        InputError: A wheel or the release is not fit.
    """
    (folder / "wheels").mkdir(parents=True)
    (folder / "systemd").mkdir()
    for wheel in wheels:
        check_plain(wheel)
        shutil.copy(wheel, folder / "wheels")
    for unit in UNITS:
        shutil.copy(SYSTEMD / unit, folder / "systemd")
    if profile.accelerators or set(runtimes) & set(WRITE_CODE):
        shutil.copy(SYSTEMD / "accelerator.conf", folder / "systemd")
    shutil.copy(INSTALLER, folder)
    if config is not None:
        shutil.copy(config, folder / "agent.toml")
    if release is not None:
        add_release(release, folder / "release.tar")
    content = hashlib.sha256("".join(sums(folder / "wheels") + sums(folder / "systemd")).encode()).hexdigest()
    (ours,) = (wheel.name.split("-")[1] for wheel in wheels if wheel.name.startswith("edgeserve-"))
    name = f"{ours}-{content[:12]}"
    facts = {
        "id": name,
        "profile": profile.name,
        "python": system.python,
        "glibc": system.glibc,
        "machine": system.machine,
        "system_packages": str(bool(set(runtimes) & set(FROM_THE_SYSTEM))).lower(),
    }
    (folder / "bundle.conf").write_text("".join(f"{key}={value}\n" for key, value in facts.items()))
    (folder / "SHA256SUMS").write_text("".join(sums(folder)))
    return name


def add_release(release: Path, tar: Path) -> None:
    """Put a release into the bundle as one file."""
    open_release(release)
    if release.is_file():
        shutil.copy(release, tar)
        return
    with tarfile.open(tar, "w") as archive:
        for path in sorted(release.rglob("*")):
            archive.add(path, str(path.relative_to(release)), recursive=False)


def sums(folder: Path) -> list[str]:
    """The lines of sha256sum for all files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]


def pack(folder: Path, tar: Path) -> None:
    """One file; the same bundle is the same bytes."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = "root"
        executable = member.isdir() or member.name.endswith(".sh")
        secret = member.name.endswith("/agent.toml")  # it holds the device's token
        member.mode = 0o755 if executable else 0o600 if secret else 0o644
        return member

    partial = tar.with_suffix(".partial")
    with tarfile.open(partial, "w") as archive:
        for path in [folder, *sorted(folder.rglob("*"))]:
            archive.add(path, str(path.relative_to(folder.parent)), recursive=False, filter=plain)
    if (folder / "agent.toml").exists():
        partial.chmod(0o600)  # it holds a device's token
    shutil.move(partial, tar)


def make(arguments: argparse.Namespace) -> Path:
    """Make the bundle; returns where it lies."""
    profile = load_profile(arguments.profile)
    system = system_of(profile, python=arguments.python, glibc=arguments.glibc)
    runtimes = tuple(arguments.runtime or profile.runtimes)
    for runtime in runtimes:
        if runtime not in profile.runtimes:
            hint = f"it has {', '.join(profile.runtimes)}"
            raise InputError(f"profile {profile.name} has no runtime {runtime[:40]!r}", hint=hint)
    wanted = [f"{PACKAGES[name]}{profile.runtimes[name]}" for name in runtimes if name in PACKAGES]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        print("building the wheel of edgeserve", flush=True)
        ours = arguments.wheel or build_wheel(scratch).rpartition(" ")[2]
        print(f"downloading wheels for Python {system.python}, glibc {system.glibc}, {system.machine}", flush=True)
        download(system, [f"edgeserve[agent] @ {ours}", *wanted], scratch / "wheels")
        wheels = sorted((scratch / "wheels").glob("*.whl"))
        folder = scratch / f"edgeserve-{profile.name}"
        name = write_bundle(
            profile, system, wheels, folder, runtimes=runtimes, config=arguments.config, release=arguments.release
        )
        arguments.output.mkdir(parents=True, exist_ok=True)
        tar = arguments.output / f"edgeserve-{profile.name}-{name}.tar"
        pack(folder, tar)
    return tar


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("profile", help="device profile: edgeserve devices list")
    parser.add_argument("--runtime", action="append", help="instead of all that the profile names")
    parser.add_argument("--python", default="", help="instead of the profile's, such as 3.13")
    parser.add_argument("--glibc", default="", help="instead of the profile's, such as 2.41")
    parser.add_argument("--wheel", help="URL of edgeserve's own wheel; built from this folder otherwise")
    parser.add_argument("--config", type=Path, help="agent.toml of the one device that the bundle is for")
    parser.add_argument("--release", type=Path, help="release that the device has from its first start on")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR")
    try:
        tar = make(parser.parse_args())
    except (EdgeServeError, OSError) as error:
        message, hint = (error.message, error.hint) if isinstance(error, EdgeServeError) else (str(error), "")
        print(f"error: {message}", *([f"hint: {hint}"] if hint else []), sep="\n", file=sys.stderr)
        return error.exit_code if isinstance(error, EdgeServeError) else 1
    digest = hashlib.sha256(tar.read_bytes()).hexdigest()
    print(f"{tar} ({tar.stat().st_size / 1e6:.0f} MB)\nsha256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
