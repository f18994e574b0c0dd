"""Device profiles: what is known of a kind of device, one TOML file each, in `profiles/` here or a folder of yours."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.contracts.device import Accelerator, DeviceFacts
from edgeserve.contracts.errors import EdgeServeError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_CONFIG_BYTES
from edgeserve.contracts.names import device_name
from edgeserve.contracts.variant import Precision

_VARIABLE: Final = "EDGESERVE_PROFILES"
_SHIPPED: Final = Path(__file__).parent / "profiles"
_MIB: Final = 1 << 20
_ARCHITECTURES: Final = ("amd64", "arm", "arm64")
_SHORT_VERSION: Final = re.compile(r"\d{1,3}\.\d{1,3}")
_CLAUSE: Final = re.compile(r"(?:===?|!=|~=|<=|>=|<|>) ?[0-9A-Za-z.*+!_-]{1,64}")
"""One clause of a version specifier, loosely: pip has the last word (PyPA, Version specifiers)."""
_HOTTEST: Final = 150.0
_LEVELS: Final = {
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
    "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
"""What each level adds, in the kernel's words (`pni` = SSE3, `abm` = LZCNT, `avx` implies OSXSAVE): x86-64 psABI,
table "Micro-Architecture Levels"."""


class Recognition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a probe knows that a machine is of this kind; empty = never by itself. Several = any of them."""

    board: str | tuple[str, ...] = ""
    """Beginning of the device tree's model."""
    cpu: str | tuple[str, ...] = ""
    """Part of the CPU's name."""

    def fits(self, board: str, cpu: str) -> bool:
        """Whether a machine with this model and CPU is of the kind."""
        boards, cpus = _several(self.board), _several(self.cpu)
        return board.startswith(boards) or any(part in cpu for part in cpus)


class Thermal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Temperatures of the chip in degrees Celsius, as the maker or the kernel says; None = not known."""

    throttle_c: float | None = None
    """From here on clocks are lowered."""
    critical_c: float | None = None
    """The limit: the board throttles with all that it has, or switches itself off."""

    def __post_init__(self) -> None:
        known = [each for each in (self.throttle_c, self.critical_c) if each is not None]
        if any(not 0 < each <= _HOTTEST for each in known) or known != sorted(known):
            raise InputError(
                f"thermal: throttle_c {self.throttle_c} and critical_c {self.critical_c} are degrees Celsius, above 0, "
                f"at most {_HOTTEST:.0f}, the lower one first"
            )


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
    """Those that a target of edgeserve can use."""
    targets: tuple[str, ...]
    """Targets that run on it, best first."""
    runtimes: dict[str, str]
    """Runtimes that can be installed on it, and which versions, as pip writes them: `>=1.20,<1.24`; empty = any."""
    os: str = ""
    python: str = ""
    """Python of that operating system, such as `3.11`."""
    glibc: str = ""
    """Its C library, such as `2.36`: it decides which wheels install."""
    precision: Precision | None = None
    """A good first choice for `edgeserve compile --precision`; None = nothing speaks for one."""
    threads: int = 0
    """A good first choice for the threads of one model on the CPU; 0 = not known."""
    thermal: Thermal = Thermal()
    recognise: Recognition = Recognition()
    installable: bool | None = None
    """Whether `edgeserve[agent]` and the runtimes install from wheels on that system's Python; None = not checked."""
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
        if not 0 <= self.threads <= self.cores:
            raise InputError(f"threads {self.threads} must be from 0 to the number of cores, {self.cores}")
        for field, version in (("python", self.python), ("glibc", self.glibc)):
            if version and not _SHORT_VERSION.fullmatch(version):
                raise InputError(f"{field} {version[:40]!r} must be two numbers, such as 3.11 or 2.36")
        for runtime, specifier in self.runtimes.items():
            if specifier and not all(_CLAUSE.fullmatch(clause.strip()) for clause in specifier.split(",")):
                raise InputError(
                    f"runtime {runtime[:40]}: {specifier[:80]!r} must be like '>=1.20,<1.24', or '*' for any"
                )

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
            runtimes=tuple(self.runtimes),
            os=self.os,
            libc=f"glibc {self.glibc}" if self.glibc else "",
            python=self.python,
            simulated=simulated,
        )


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A profile as written: the name is the file's, memory is in MiB, runtimes may be a list of names."""

    title: str
    architecture: str
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    memory_mib: int
    accelerators: tuple[Accelerator, ...] = ()
    targets: tuple[str, ...]
    runtimes: tuple[str, ...] | dict[str, str]
    os: str = ""
    python: str = ""
    glibc: str = ""
    precision: Precision | None = None
    threads: int = 0
    thermal: Thermal = Thermal()
    recognise: Recognition = Recognition()
    installable: bool | None = None
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
        fields["runtimes"] = _specifiers(written.runtimes)
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
    profiles = (load_profile(name, folder=folder) for name in profile_names(folder=folder))
    fitting = [profile.name for profile in profiles if profile.recognise.fits(board, cpu)]
    return fitting[0] if len(fitting) == 1 else ""


def x86_64_level(flags: Collection[str]) -> str:
    """Highest level of the x86-64 psABI that a CPU reaches: `x86-64-v2`, `-v3`, `-v4`; empty = below, or not known.

    Args:
        flags: All flags of `/proc/cpuinfo`, not only those that matter for inference.
    """
    reached = ""
    for level, added in _LEVELS.items():
        if not added <= set(flags):
            break
        reached = level
    return reached


def _specifiers(runtimes: tuple[str, ...] | dict[str, str]) -> dict[str, str]:
    if isinstance(runtimes, tuple):
        return dict.fromkeys(runtimes, "")
    return {name: "" if specifier.strip() == "*" else specifier.strip() for name, specifier in runtimes.items()}


def _several(words: str | tuple[str, ...]) -> tuple[str, ...]:
    """The words that say something: every text begins with the empty one."""
    return tuple(word for word in ((words,) if isinstance(words, str) else words) if word)


def _files(folder: Path | None) -> dict[str, Path]:
    named = os.environ.get(_VARIABLE, "")
    own = folder if folder is not None else Path(named) if named else None
    if own is not None and not own.is_dir():
        raise InputError(f"the folder of device profiles {own} does not exist", hint=f"see {_VARIABLE} or --profiles")
    folders = [_SHIPPED, *([own] if own is not None else [])]
    return {path.stem: path for each in folders for path in sorted(each.glob("*.toml"))}
