"""The interface between the control part and the serving process: one JSON line each way over `control.sock`.

The serving process outlives a restart of the control part, which finds it again by the socket (mode 0600).
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final, TypeVar, cast

import msgspec

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError, TransientError
from edgeserve.contracts.telemetry import ReleaseStats

SOCKET: Final = "control.sock"
MAX_LINE_BYTES: Final = 1 << 20
_NOT_A_DOCUMENT: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, EdgeServeError)


class Status(msgspec.Struct, frozen=True, tag=True):
    """Ask what is served."""


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load and warm up a variant beside what answers; it does not answer yet. Loading it twice is no error."""

    model: str
    version: str
    release: str
    variant: str
    folder: str
    counter: int = 0
    """Of the release; 0 = not known."""


class Activate(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Let a loaded release answer, in one step; requests in flight finish on the one they began with."""

    model: str
    release: str


class Unload(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Drop a release when its last request is done. Unloading what is not there is no error."""

    model: str
    release: str


class Configure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Take up what `models/NAME.toml` says now: what is loaded of the model is loaded anew and then replaced.

    When that fails, all goes on as it was.
    """

    model: str


class SetLabel(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Let a label stand for a loaded release, or, with an empty one, for nothing; kept over restarts."""

    model: str
    label: str
    release: str = ""


class ReadStats(msgspec.Struct, frozen=True, tag=True):
    """Ask for the counters."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Stop listening, finish what is in flight, exit."""


Command = Status | Load | Activate | Unload | Configure | SetLabel | ReadStats | Stop


class ServedRelease(msgspec.Struct, frozen=True, kw_only=True):
    """One loaded release of a model."""

    model: str
    version: str
    release: str
    variant: str
    active: bool
    executing_device: str
    fallback: str = ""
    """Why that is not the device asked for; empty = it is."""


class ServingStatus(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to `Status`."""

    pid: int
    started: str
    """Random id of this life of the process; counters began at 0 with it."""
    http_url: str
    insecure: bool = False
    """It was told to listen on other addresses than loopback without TLS and token."""
    starting: bool = False
    """Models that it was started with are neither loaded nor given up yet."""
    releases: tuple[ServedRelease, ...] = ()


class ServingStats(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to `ReadStats`."""

    started: str
    releases: tuple[ReleaseStats, ...] = ()


class Done(msgspec.Struct, frozen=True, tag=True):
    """Answer to a command that worked and has nothing to tell."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to a command that did not work."""

    failed: str
    hint: str = ""


A = TypeVar("A", ServingStatus, ServingStats, Done)


def call(socket_path: Path, command: Command, answer: type[A], *, timeout_s: float = 10.0) -> A:
    """Send one command to the serving process.

    Raises:
        TransientError: No serving process answers at the socket.
        DeviceError: The process could not do it; the message says why.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(socket_path))
            connection.sendall(msgspec.json.encode(command) + b"\n")
            with connection.makefile("rb") as reader:
                line = reader.readline(MAX_LINE_BYTES)
    except OSError as error:
        raise TransientError(f"the serving process does not answer at {socket_path}: {error}") from error
    if not line.endswith(b"\n"):
        raise TransientError(f"the serving process closed {socket_path} without an answer")
    try:
        answered = msgspec.json.decode(line, type=answer | Failed)
    except _NOT_A_DOCUMENT as error:
        raise TransientError(f"the serving process at {socket_path} speaks another protocol: {error}") from error
    if isinstance(answered, Failed):
        raise DeviceError(answered.failed, hint=answered.hint)
    return cast("A", answered)


def parse(line: bytes) -> Command:
    """Read one command, as the serving process does.

    Raises:
        InputError: The line is not a command.
    """
    try:
        return cast("Command", msgspec.json.decode(line, type=Command))
    except _NOT_A_DOCUMENT as error:
        raise InputError(f"not a control command: {error}") from error
