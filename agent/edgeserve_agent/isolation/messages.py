"""What the serving process, the fork server and the workers tell each other, as MessagePack. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import msgspec

from edgeserve.contracts import errors
from edgeserve.contracts.errors import DeviceError, EdgeServeError
from edgeserve.contracts.limits import MAX_REASON_CHARS
from edgeserve.contracts.tensors import Signature
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve_agent.isolation.options import IsolationOptions

T = TypeVar("T")

_ERRORS: Final = {
    kind.__name__: kind
    for kind in (
        errors.EdgeServeError,
        errors.InputError,
        errors.NotFoundError,
        errors.ConflictError,
        errors.TrustError,
        errors.AccuracyError,
        errors.TransientError,
        errors.DeviceError,
        errors.MissingLibraryError,
    )
}


def _text_of(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"no message holds a {type(value).__name__}")


def from_text(kind: type, text: str) -> object:
    """Decoding hook: a path travels as text."""
    if issubclass(kind, Path):
        return kind(text)
    raise NotImplementedError(f"no message holds a {kind.__name__}")


_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_text_of)


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """An error that crosses a process boundary."""

    kind: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Take an error apart; one that is not of edgeserve becomes a DeviceError that names its class."""
        if isinstance(error, EdgeServeError):
            kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
            return cls(kind=kind, message=_short(error.message), hint=_short(error.hint))
        if isinstance(error, MemoryError):
            return cls(kind=DeviceError.__name__, message="the worker process has not enough memory")
        return cls(kind=DeviceError.__name__, message=_short(f"{type(error).__name__} in the worker process: {error}"))

    def error(self) -> EdgeServeError:
        """The error again, of the same class."""
        return _ERRORS.get(self.kind, DeviceError)(self.message, hint=self.hint)


class LoadOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to load and how."""

    runtime: str
    """Name in the entry-point group `edgeserve.runtimes`."""
    path: str
    """Absolute: the fork server may have another working directory."""
    options: RuntimeOptions
    isolation: IsolationOptions


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """A worker has loaded its model."""

    signature: Signature
    executing_device: str
    fallback: str = ""
    placement: dict[str, int] = {}


class Warm(msgspec.Struct, frozen=True, kw_only=True, tag="warm"):
    """To the fork server: import a runtime, so that later workers have it."""

    runtime: str


class Fork(msgspec.Struct, frozen=True, kw_only=True, tag="fork"):
    """To the fork server: fork a worker. Descriptors: the pipe for `Loaded | Failure`, then socket and memfd a lane."""

    order: LoadOrder


class Reap(msgspec.Struct, frozen=True, kw_only=True, tag="reap"):
    """To the fork server: say how a worker ended, which it has."""

    pid: int


class Warmed(msgspec.Struct, frozen=True, kw_only=True, tag="warmed"):
    """The runtime is imported."""

    version: str


class Forked(msgspec.Struct, frozen=True, kw_only=True, tag="forked"):
    """The worker runs. Descriptor: its pidfd."""

    pid: int


class Reaped(msgspec.Struct, frozen=True, kw_only=True, tag="reaped"):
    """The worker is gone."""

    code: int | None
    """Exit code, negative the signal; None = not known."""


Order = Warm | Fork | Reap
Answer = Warmed | Forked | Reaped | Failure


def encode(message: object) -> bytes:
    """One message as MessagePack."""
    return _ENCODER.encode(message)


def _short(text: str) -> str:
    return text[:MAX_REASON_CHARS].encode("utf-8", "replace").decode()
