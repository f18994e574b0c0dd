"""One loaded release of a model, as the data plane holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeserve.contracts.limits import LOOP_RUN_MAX_US
from edgeserve.contracts.model_config import Isolation, ModelConfig
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Signature
from edgeserve.runtimes.base import Tensors
from edgeserve_agent.serving.codec.request import RequestDecoder
from edgeserve_agent.serving.counters import Counters
from edgeserve_agent.serving.opened import Warm
from edgeserve_agent.serving.scheduling.base import Scheduler

if TYPE_CHECKING:
    from edgeserve_agent.serving.feedback import Classifier


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What is loaded, in the fleet's words."""

    model: str
    version: str
    release: str
    variant: str
    counter: int = 0
    """Of the release: its number, where a protocol has only numbers for versions; 0 = none."""


class ServedRelease:
    """A model in memory, its counters and its scheduler."""

    scheduler: Scheduler

    def __init__(self, identity: Identity, warm: Warm, counters: Counters) -> None:
        opened = warm.opened
        self.identity = identity
        self.opened = opened
        self.model = opened.model
        self.signature = _client_signature(opened.model.signature, opened.config)
        self.config: ModelConfig = opened.config
        self.counters = counters
        self.call_us = warm.call_us
        self.classifier = _classifier(opened.task, self.signature)
        self.labels: tuple[str, ...] = opened.labels or (opened.task.labels if opened.task else ())
        self.decoder = RequestDecoder(self.signature)
        # Time is taken to grow with the number of elements.
        share = LOOP_RUN_MAX_US / max(warm.call_us, 1.0)
        on_loop = share >= 1 and self.config.isolation is Isolation.NONE
        self.loop_elements = int(warm.elements * share) if on_loop else -1
        first = self.signature.inputs[0]
        self._batched = first.name if first.shape[:1] == (-1,) else ""
        self.in_flight = 0
        self.retired = False

    def rows(self, inputs: Tensors) -> int:
        """Batch size of a request that was answered."""
        return inputs[self._batched].shape[0] if self._batched else 1

    @property
    def crashes(self) -> int:
        """Worker processes of an isolated model that ended unasked since it was loaded."""
        return int(getattr(self.model, "crashes", 0))

    @property
    def number(self) -> int:
        """The version where a protocol has only numbers: the release's counter, or the version itself."""
        identity = self.identity
        if identity.counter:
            return identity.counter
        return int(identity.version) if identity.version.isascii() and identity.version.isdecimal() else 1


# What few models have is imported with the first that has it.


def _client_signature(signature: Signature, config: ModelConfig) -> Signature:
    if config.sequence_batching is None:
        return signature
    from edgeserve_agent.serving.scheduling.stateful import client_signature

    return client_signature(signature, config)


def _classifier(task: Task | None, signature: Signature) -> Classifier | None:
    if task is None:
        return None
    from edgeserve_agent.serving.feedback import Classifier

    return Classifier(task, signature)
