"""Opens, warms up and closes models on a thread of its own, one after the other in the order asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from edgeserve.contracts.errors import DeviceError, EdgeServeError
from edgeserve.runtimes.base import LoadedModel
from edgeserve_agent.serving.heap import settle
from edgeserve_agent.serving.opened import Opened, Warm, warm_up
from edgeserve_agent.serving.workers import Outcome, Workers

if TYPE_CHECKING:
    from edgeserve_agent.serving.served import Identity, ServedRelease

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Loading:
    """A release that is being opened and warmed up."""

    identity: Identity
    put: bool
    """Let it in when it is ready: it is a load. Else whoever prepares it decides."""
    future: asyncio.Future[ServedRelease]
    """Done before the model is ready when nobody wants it any more."""


class Loader:
    """Lives on the event loop.

    Args:
        loop: Where it lives.
        ready: Makes a release of a model that is ready and wanted. When it raises, the model is closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ready: Callable[[Loading, Warm], ServedRelease]) -> None:
        self._loop = loop
        self._ready = ready
        self._thread = Workers(loop, threads=1, name="load")
        self._under_way: list[Loading] = []
        self._closing = False

    def wanted(self, model: str = "", release: str = "") -> list[Loading]:
        """What is being opened and still wanted; of one model, or one release."""
        return [
            one
            for one in self._under_way
            if not one.future.done() and model in ("", one.identity.model) and release in ("", one.identity.release)
        ]

    def begin(self, identity: Identity, opener: Callable[[], Opened], *, put: bool) -> Loading:
        """Let a model be opened; its future gets the release or an `EdgeServeError`."""
        loading = Loading(identity=identity, put=put, future=self._loop.create_future())
        # An error that no one waits for any more is not to be complained of.
        loading.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._under_way.append(loading)
        self._thread.submit(partial(_warm, opener, loading.future), partial(self._opened, loading))
        return loading

    def drop(self, model: str, release: str) -> None:
        """Let what is being opened of a release fail: it was unloaded."""
        for one in self.wanted(model, release):
            name = f"{model} {one.identity.version}"
            one.future.set_exception(DeviceError(f"{name} was unloaded while it was being loaded"))

    def close_model(self, model: LoadedModel) -> None:
        """Free a model: of a large one, that takes milliseconds that requests need not wait."""
        self._thread.submit(partial(_close, model), _log_failure)

    def close(self) -> None:
        """End the thread when it has done all it was asked for, and closed what nobody wants any more."""
        self._closing = True
        if not self._under_way:
            self._thread.close()

    def _opened(self, loading: Loading, outcome: Outcome[Warm | None]) -> None:
        self._under_way.remove(loading)
        model = outcome.opened.model if isinstance(outcome, Warm) else None
        if not loading.future.done():
            try:
                if not isinstance(outcome, Warm):
                    raise outcome or AssertionError("it was not opened")
                loading.future.set_result(self._ready(loading, outcome))
                return
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                loading.future.set_exception(_failure(loading.identity, error))
        if model is not None:
            self.close_model(model)
        if self._closing:
            self.close()


def _failure(identity: Identity, error: Exception) -> EdgeServeError:
    if isinstance(error, EdgeServeError):
        return error
    what = f"loading {identity.model} {identity.version} failed"
    _LOG.error("%s", what, exc_info=error)
    return DeviceError(f"{what}: {error}")


def _warm(opener: Callable[[], Opened], future: asyncio.Future[ServedRelease]) -> Warm | None:
    if future.done():  # nobody wants it any more since before its turn came
        return None
    warm = warm_up(opener())
    settle()
    return warm


def _close(model: LoadedModel) -> None:
    model.close()
    settle()


def _log_failure(outcome: Outcome[None]) -> None:
    if isinstance(outcome, Exception):
        _LOG.error("closing a model failed", exc_info=outcome)
