"""Which of the variants that fit this device it runs: the fastest, here, of those that pass their trial."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from edgeserve.contracts.errors import DeviceError
from edgeserve.release.layout import Variant
from edgeserve_agent.sandbox import TrialAnswer, TrialError
from edgeserve_devices.match import title

_log = logging.getLogger("edgeserve.agent")


def pick(alternatives: Sequence[Variant], attempt: Callable[[Variant], TrialAnswer]) -> tuple[Variant, TrialAnswer]:
    """Try every variant, one after the other, and pick the one with the lowest latency.

    Args:
        alternatives: At least one, best guess first: it wins where latencies are equal or not known.
        attempt: Tries one.

    Returns:
        The variant picked and the answer of its trial. One that fails while another passes is only logged.

    Raises:
        TrialError: All failed their trials.
        DeviceError: None passed, and for one of them it was the device that could not, such as a full disk.
    """
    passed: list[tuple[Variant, TrialAnswer]] = []
    failed: list[tuple[Variant, DeviceError]] = []
    for variant in alternatives:
        name = title(variant.contract)
        try:
            answer = attempt(variant)
        except DeviceError as error:
            failed.append((variant, error))
            _log.warning("%s: %s", name, error.message)
            continue
        passed.append((variant, answer))
        if answer.fallback:
            _log.warning("%s: %s", name, answer.fallback)
        _log.info(
            "%s passed its trial on %s: %d rows, agreement %.3f, %.3f ms a row",
            name, answer.executing_device, answer.rows, answer.agreement, answer.latency_ms,
        )  # fmt: skip
    if not passed:
        raise _all_failed(failed)
    picked = min(passed, key=lambda one: one[1].latency_ms or math.inf)
    if len(alternatives) > 1:
        _log.info("%s is picked of %d alternatives", title(picked[0].contract), len(alternatives))
    return picked


def _all_failed(failed: Sequence[tuple[Variant, DeviceError]]) -> DeviceError:
    # A release is to blame only when the device could try every variant.
    kept = next((error for _, error in failed if not isinstance(error, TrialError)), failed[0][1])
    if len(failed) == 1 or not isinstance(kept, TrialError):
        return kept
    reasons = "; ".join(f"{title(variant.contract)}: {error.message}" for variant, error in failed)
    return TrialError(f"none of {len(failed)} variants passed its trial: {reasons}")
