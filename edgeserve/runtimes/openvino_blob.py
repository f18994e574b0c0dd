"""Compiled models of OpenVINO (blobs), kept from one load to the next: the action `openvino-blob` of a variant."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any, Final

from edgeserve.runtimes.checks import first_line
from edgeserve.runtimes.engine_cache import EngineCache, EngineKey

_log: Final = logging.getLogger(__name__)


class _NoBlobError(Exception):
    """The device does not export this model."""


def from_blob(
    cache: EngineCache,
    key: EngineKey,
    compile_model: Callable[[], Any],
    import_model: Callable[[io.BytesIO], Any],
    *,
    what: str,
) -> Any:  # noqa: ANN401 - the library is not typed
    """A compiled model, from the blob that was kept if it is whole and the library takes it, else compiled and kept.

    Args:
        cache: Verifies a blob before it hands it out.
        key: Of the blob.
        compile_model: Compiles the model.
        import_model: Loads a blob; a RuntimeError means that this library or driver does not take it.
        what: Name of the model, for the log.

    Raises:
        DeviceError: No space for the blob.
        EdgeServeError: As `compile_model` raises.
    """
    made: list[Any] = []

    def build() -> bytes:
        made.append(compile_model())
        try:
            exported: io.BytesIO = made[0].export_model()
        except RuntimeError as error:
            raise _NoBlobError(first_line(error)) from error
        return exported.getvalue()

    try:
        blob = cache.find_or_build(key, build, what=what)
        if not made:
            try:
                return import_model(io.BytesIO(blob))
            except RuntimeError as error:  # it is what was kept here, and still not for this driver
                _log.warning("the blob of %s is made anew: %s", what, first_line(error))
                cache.remove(key)
                blob = cache.find_or_build(key, build, what=what)
                if not made:  # another process was quicker
                    return import_model(io.BytesIO(blob))
    except _NoBlobError as error:
        _log.warning("%s is compiled at each start, because the device exports no blob of it: %s", what, error)
    return made[0]
