"""File descriptors: how many this process may have open, and how many connections that makes."""

from __future__ import annotations

import logging
import sys
from typing import Final

from edgeserve.contracts.limits import DESCRIPTORS_KEPT, MAX_CONNECTIONS

if sys.platform != "win32":  # which has no such limit: a process has as many sockets as memory allows
    import resource

_LOG: Final = logging.getLogger(__name__)
_WANTED: Final = MAX_CONNECTIONS * 4 // 3 + DESCRIPTORS_KEPT
_LEAST: Final = 64
"""Connections that are taken however few descriptors there are; accepting then fails now and then, and goes on."""


def raise_descriptor_limit() -> int:
    """Raise the soft limit of this process as far as is of use and the hard limit allows, and return it.

    Systems set the soft limit to 1024 for programs that use select(2), which this one does not; programs that can do
    with more are expected to raise it themselves ("File Descriptor Limits", systemd).
    """
    if sys.platform == "win32":
        return _WANTED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(_WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:  # macOS has a lower one for each process
        _LOG.info("the limit of open files stays at %d: %s", soft, error)
        return soft
    return wanted


def connections_of(descriptors: int) -> int:
    """Connections of a server that may have `descriptors` open.

    A quarter is left for those that are being turned away, each until its client has read why.
    """
    return min(MAX_CONNECTIONS, max(_LEAST, (descriptors - DESCRIPTORS_KEPT) * 3 // 4))


def connection_limit() -> int:
    """Connections that fit the soft limit of this process."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else connections_of(soft)
