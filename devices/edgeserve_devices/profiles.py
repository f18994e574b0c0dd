"""Device profiles: what is known of a kind of device, one TOML file each, in `profiles/` here or a folder of yours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.contracts.device import Accelerator, DeviceFacts
from edgeserve.contracts.errors import EdgeServeError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_CONFIG_BYTES
from edgeserve.contracts.names import device_name

_VARIABLE: Final = "EDGESERVE_PROFILES"
_SHIPPED: Final = Path(__file__).parent / "profiles"
_MIB: Final = 1 << 20
_ARCHITECTURES: Final = ("amd64", "arm", "arm64")


class Recognition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a probe knows that a machine is of this kind; empty = never by itself."""

    board: str = ""
    """Beginning of the device tree's model."""
    cpu: str = ""
    """Part of the CPU's name."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of device."""

    name: str
    title: str
    architecture: str
    """`amd64`, `arm64` or `arm`."""
    cpu: str
    cpu_features: tuple[str, ...]
    """Flags in the kernel's words that every device of the kind has."""
    cores: int
    """Logical processors."""
    memory_bytes: int
    accelerators: tuple[Accelerator, ...] = ()
    targets: tuple[str, ...]
    """Targets that run on it, best first."""
    runtimes: tuple[str, ...]
    """Runtimes that can be installed on it."""
    os: str = ""
    recognise: Recognition = Recognition()
    verified: bool
    """Somebody ran edgeserve on such a device."""

    def __post_init__(self) -> None:
        device_name(self.name)
        if self.architecture not in _ARCHITECTURES:
            raise InputError(f"architecture {self.architecture[:40]!r} is none of {', '.join(_ARCHITECTURES)}")
        if self.cores < 1 or self.memory_bytes < _MIB:
            raise InputError("a device has at least one core and 1 MiB of memory")
        if not self.targets:
            raise InputError("a profile names at least one target")

    def facts(self, *, simulated: bool = False) -> DeviceFacts:
        """The facts of a device of this kind.

        Args:
            simulated: The caller runs it on other hardware. It then replaces `runtimes` by those of the machine that
                runs (`edgeserve_devices.probe.installed_runtimes`), as the agent does.
        """
        return DeviceFacts(
            profile=self.name,
            architecture=self.architecture,
            cpu=self.cpu,
            cpu_features=self.cpu_features,
            cores=self.cores,
            memory_bytes=self.memory_bytes,
            accelerators=self.accelerators,
            runtimes=self.runtimes,
            os=self.os,
            simulated=simulated,
        )


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A profile as written: the name is the file's, memory is in MiB."""

    title: str
    architecture: str
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    memory_mib: int
    accelerators: tuple[Accelerator, ...] = ()
    targets: tuple[str, ...]
    runtimes: tuple[str, ...]
    os: str = ""
    recognise: Recognition = Recognition()
    verified: bool = False


def profile_names(*, folder: Path | None = None) -> tuple[str, ...]:
    """Names of all profiles, sorted: the shipped ones and those of `folder` (default: `EDGESERVE_PROFILES`).

    Raises:
        InputError: The folder is not there.
    """
    return tuple(sorted(_files(folder)))


def load_profile(name: str, *, folder: Path | None = None) -> Profile:
    """Read a profile; one in `folder` (default: `EDGESERVE_PROFILES`) goes before a shipped one of its name.

    Raises:
        NotFoundError: No profile has this name.
        InputError: The file is not a profile.
    """
    files = _files(folder)
    path = files.get(name)
    if path is None:
        raise NotFoundError(f"no device profile is named {name[:80]!r}", hint=f"known: {', '.join(sorted(files))}")
    try:
        text = path.read_bytes()
        if len(text) > MAX_CONFIG_BYTES:
            raise InputError(f"it has {len(text)} bytes, at most {MAX_CONFIG_BYTES} are allowed")
        written = msgspec.toml.decode(text, type=_File)
        fields = {field: getattr(written, field) for field in written.__struct_fields__ if field != "memory_mib"}
        return Profile(name=name, memory_bytes=written.memory_mib * _MIB, **fields)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, EdgeServeError) as error:
        raise InputError(f"device profile {path} is not valid: {error}") from error


def recognise(board: str, cpu: str, *, folder: Path | None = None) -> str:
    """Name of the profile whose `recognise` table fits a machine; empty when none or more than one does.

    Args:
        board: Model from the device tree, empty on a PC.
        cpu: Name of the CPU.
        folder: As in `load_profile`.
    """
    fitting = [
        profile.name
        for profile in (load_profile(name, folder=folder) for name in profile_names(folder=folder))
        if (profile.recognise.board and board.startswith(profile.recognise.board))
        or (profile.recognise.cpu and profile.recognise.cpu in cpu)
    ]
    return fitting[0] if len(fitting) == 1 else ""


def _files(folder: Path | None) -> dict[str, Path]:
    named = os.environ.get(_VARIABLE, "")
    own = folder if folder is not None else Path(named) if named else None
    if own is not None and not own.is_dir():
        raise InputError(f"the folder of device profiles {own} does not exist", hint=f"see {_VARIABLE} or --profiles")
    folders = [_SHIPPED, *([own] if own is not None else [])]
    return {path.stem: path for each in folders for path in sorted(each.glob("*.toml"))}
