"""Errors, grouped by who must act. Each carries a hint that says what to do.

    EdgeServeError
    ├── InputError        the user gave something wrong              exit 2
    │   └── NotFoundError     ... that does not exist                exit 2
    │   └── ConflictError     ... that clashes with what is there    exit 2
    │   └── TooLargeError     ... larger than a limit allows         exit 2
    │   └── UnsupportedError  ... that no setting makes work here    exit 2
    ├── TrustError        a check of authenticity refused it         exit 3
    ├── AccuracyError     no variant meets the accuracy bound        exit 4
    ├── TransientError    network or peer: try again                 exit 1
    │   └── RejectedError     ... a queue is full or took too long   exit 1
    │   └── RequestCancelledError ... nobody waits for it any more   exit 1
    └── DeviceError       this machine cannot: disk, runtime, port   exit 1
        └── MissingLibraryError  ... until a package is installed    exit 1

Protocol codes (HTTP, MQTT) are chosen by the protocol adapters, never here.
"""

from __future__ import annotations

from typing import ClassVar


class EdgeServeError(Exception):
    """Base of every error that edgeserve raises on purpose.

    Args:
        message: What is wrong and where: names the file, the field or the peer.
        hint: What the reader can do about it; empty when the message says it all.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(EdgeServeError):
    """The user's file, option or request is wrong."""

    exit_code = 2


class NotFoundError(InputError):
    """The named thing does not exist."""


class ConflictError(InputError):
    """The thing exists already, or its state does not allow the request."""


class TooLargeError(InputError):
    """It is larger than a limit allows."""


class UnsupportedError(InputError):
    """It is asked for rightly, and edgeserve does not do it."""


class TrustError(EdgeServeError):
    """Bytes are not what a trusted party signed or named by digest."""

    exit_code = 3


class AccuracyError(EdgeServeError):
    """No product meets the accuracy bound that the user set."""

    exit_code = 4


class TransientError(EdgeServeError):
    """A peer or the network failed; the same call may succeed later."""


class RejectedError(TransientError):
    """A queue is full, or the request waited longer than it may."""


class RequestCancelledError(TransientError):
    """Whoever asked has gone."""

    def __init__(self, message: str = "the request was cancelled before it ran", *, hint: str = "") -> None:
        super().__init__(message, hint=hint)


class DeviceError(EdgeServeError):
    """This machine cannot do it: no space, no runtime, port in use, limits."""


class MissingLibraryError(DeviceError):
    """A package is not installed; the hint has the command that installs it."""
