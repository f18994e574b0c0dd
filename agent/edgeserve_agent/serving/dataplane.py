"""The data plane: which release of each model answers, and the answering. It knows no protocol.

All methods run on the event loop; only loading and slow calls run on threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError, NotFoundError, TransientError
from edgeserve.contracts.limits import LOOP_RUN_MAX_US
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve_agent.serving.counters import Counters
from edgeserve_agent.serving.feedback import Classifier, FeedbackRing, Judgement, Labels, Verdict
from edgeserve_agent.serving.opened import Opened, Warm, warm_up
from edgeserve_agent.serving.workers import Outcome, Workers

_LOG: Final = logging.getLogger(__name__)

Done = Callable[[Tensors | EdgeServeError], None]


class Answered(Protocol):
    """What a job made of one row."""

    @property
    def outputs(self) -> Tensors:
        """Of the model."""


A = TypeVar("A", bound=Answered)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What is loaded, in the fleet's words."""

    model: str
    version: str
    release: str
    variant: str


class ServedRelease:
    """One loaded release of a model."""

    def __init__(self, identity: Identity, warm: Warm, counters: Counters) -> None:
        opened = warm.opened
        self.identity = identity
        self.opened = opened
        self.signature = opened.model.signature
        self.counters = counters
        self.classifier = Classifier(opened.task, self.signature) if opened.task else None
        # Time is taken to grow with the number of elements.
        share = LOOP_RUN_MAX_US / max(warm.call_us, 1.0)
        self._loop_elements = int(warm.elements * share) if share >= 1 else -1
        first = self.signature.inputs[0]
        self._batched = first.name if first.shape[:1] == (-1,) else ""
        self.in_flight = 0
        self.retired = False
        self.workers: Workers | None = None

    def runs_on_loop(self, inputs: Mapping[str, Tensor]) -> bool:
        """Whether a call is expected to be so short that handing it to a thread would cost more."""
        return sum(array.size for array in inputs.values()) <= self._loop_elements

    def rows(self, inputs: Mapping[str, Tensor]) -> int:
        """Batch size of a request that was answered."""
        return inputs[self._batched].shape[0] if self._batched else 1


class DataPlane:
    """Loads, activates and unloads releases, and lets the active one of a model answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, workers: int) -> None:
        self._loop = loop
        self._threads = workers
        self._loader = Workers(loop, threads=1, name="load")
        self._loaded: dict[tuple[str, str], ServedRelease] = {}
        self._loading: dict[tuple[str, str], asyncio.Future[ServedRelease]] = {}
        self._active: dict[str, ServedRelease] = {}
        self._expected: dict[str, str] = {}
        """Models that this server should serve -> why one is not ready."""
        self._counters: dict[tuple[str, str], Counters] = {}
        self._rings: dict[str, FeedbackRing[Counters]] = {}
        self.unknown_feedback: dict[str, int] = {}

    # What is served ----------------------------------------------------------------------------

    def expect(self, model: str) -> None:
        """Say that `model` is to be served: the server is not ready before it is."""
        self._expected.setdefault(model, "it is being loaded")

    def give_up(self, model: str, reason: str) -> None:
        """Say why an expected model is not served."""
        self._expected[model] = reason

    def models(self) -> list[str]:
        """Names of the models that are served or expected."""
        return sorted({*self._expected, *self._active})

    def releases(self) -> Iterator[tuple[ServedRelease, bool]]:
        """Everything that is loaded, and whether it is active."""
        for served in self._loaded.values():
            yield served, self._active.get(served.identity.model) is served

    def counters(self) -> Sequence[Counters]:
        """Counters of every release that was ever loaded in this process."""
        return list(self._counters.values())

    def is_active(self, model: str) -> bool:
        """Whether a release of `model` answers."""
        return model in self._active

    def ready(self) -> bool:
        """Whether every model that should be served is served."""
        return all(model in self._active for model in self._expected)

    def find(self, model: str, version: str = "") -> ServedRelease:
        """The release that answers for `model`: the active one, or any loaded one with the version asked for.

        Raises:
            NotFoundError: No such model or version.
            TransientError: It is being loaded, or could not be.
        """
        active = self._active.get(model)
        if active is not None and version in ("", active.identity.version):
            return active
        loaded = self.loaded(model)
        if version:
            for served in reversed(loaded):
                if served.identity.version == version:
                    return served
        if active is None and (loaded or model in self._expected or self._is_loading(model)):
            raise TransientError(f"model {model!r} is not ready: {self._expected.get(model, 'nothing is active')}")
        if active is not None or loaded:
            known = ", ".join(served.identity.version for served in loaded)
            raise NotFoundError(f"model {model!r} has no version {version[:80]!r}; loaded: {known}")
        raise NotFoundError(f"unknown model {model[:80]!r}", hint="GET /v2/models lists what is served")

    def _is_loading(self, model: str) -> bool:
        return any(name == model for name, _ in self._loading)

    def loaded(self, model: str) -> list[ServedRelease]:
        """Loaded releases of `model`, oldest first."""
        return [served for (name, _), served in self._loaded.items() if name == model]

    # Changing it -------------------------------------------------------------------------------

    async def load(self, identity: Identity, opener: Callable[[], Opened]) -> None:
        """Open and warm up a release beside what answers. One that is loaded or loading already is no error.

        Raises:
            EdgeServeError: It could not be opened or does not run; nothing changed.
        """
        key = (identity.model, identity.release)
        if key in self._loaded:
            return
        under_way = self._loading.get(key)
        if under_way is None:
            under_way = self._loading[key] = self._loop.create_future()
            # An error that no one waits for any more is logged, not raised.
            under_way.add_done_callback(lambda future: future.cancelled() or future.exception())
            self._loader.submit(lambda: warm_up(opener()), partial(self._opened, identity, under_way))
        await asyncio.shield(under_way)

    def _opened(self, identity: Identity, future: asyncio.Future[ServedRelease], outcome: Outcome[Warm]) -> None:
        key = (identity.model, identity.release)
        wanted = self._loading.get(key) is future
        if wanted:
            del self._loading[key]
        name = f"{identity.model} {identity.version}"
        if isinstance(outcome, EdgeServeError):
            future.set_exception(outcome)
            return
        if isinstance(outcome, Exception):
            _LOG.error("loading %s failed", name, exc_info=outcome)
            future.set_exception(DeviceError(f"loading {name} failed: {outcome}"))
            return
        model = outcome.opened.model
        try:
            if not wanted:
                raise DeviceError(f"{name} was unloaded while it was being loaded")
            counters = self._counters.setdefault(
                key, Counters(model=identity.model, version=identity.version, release=identity.release)
            )
            served = self._loaded[key] = ServedRelease(identity, outcome, counters)
        except EdgeServeError as error:
            self._loader.submit(model.close, _log_failure)
            future.set_exception(error)
            return
        future.set_result(served)
        _LOG.info("loaded %s on %s, %.0f us a call", name, model.executing_device, outcome.call_us)

    def activate(self, model: str, release: str) -> None:
        """Let a loaded release answer from the next request on.

        Raises:
            NotFoundError: It is not loaded.
        """
        served = self._loaded.get((model, release))
        if served is None:
            raise NotFoundError(f"{model} {release} is not loaded", hint="load it first")
        self.expect(model)
        self._active[model] = served
        _LOG.info("%s %s answers", model, served.identity.version)

    def unload(self, model: str, release: str) -> None:
        """Drop a release when its last request is done. What is not there is no error."""
        self._loading.pop((model, release), None)
        served = self._loaded.pop((model, release), None)
        if served is None:
            return
        if self._active.get(model) is served:
            del self._active[model]
        if not self.loaded(model):
            self._expected.pop(model, None)
        served.retired = True
        self._close_if_done(served)

    def close(self) -> None:
        """Unload everything."""
        for model, release in list(self._loaded):
            self.unload(model, release)
        self._loader.close()

    def _close_if_done(self, served: ServedRelease) -> None:
        if served.retired and not served.in_flight:
            if served.workers is not None:
                served.workers.close()
            # Freeing a large model takes milliseconds that other requests need not wait.
            self._loader.submit(served.opened.model.close, _log_failure)

    # Answering ---------------------------------------------------------------------------------

    def infer(self, served: ServedRelease, inputs: Tensors, *, request_id: str, done: Done) -> None:
        """Run the model; `done` gets the outputs or the error, at once or later, on the event loop.

        An `InputError` is the client's mistake, any other error the server's failure.
        """
        started = time.perf_counter()
        served.in_flight += 1
        finish = partial(self._finish, served, inputs, request_id, started, done)
        if served.runs_on_loop(inputs):
            outcome: Outcome[Tensors]
            try:
                outcome = served.opened.model.run(inputs)
            except Exception as error:  # noqa: BLE001 - told apart in _finish
                outcome = error
            finish(outcome)
            return
        self._workers(served).submit(partial(served.opened.model.run, inputs), finish)

    def infer_by(
        self,
        served: ServedRelease,
        job: Callable[[], A],
        *,
        request_id: str,
        done: Callable[[A | EdgeServeError], None],
    ) -> None:
        """Let `job`, which runs the model on one row, work on the release's own threads; otherwise as `infer`."""
        started = time.perf_counter()
        served.in_flight += 1

        def finish(outcome: Outcome[A]) -> None:
            if isinstance(outcome, Exception):
                self._finish(served, None, request_id, started, _only_errors(done), outcome)
            else:
                self._finish(served, None, request_id, started, lambda _outputs: done(outcome), outcome.outputs)

        self._workers(served).submit(job, finish)

    def _workers(self, served: ServedRelease) -> Workers:
        if served.workers is None:
            served.workers = Workers(self._loop, threads=self._threads, name=f"run-{served.identity.model}")
        return served.workers

    def _finish(
        self,
        served: ServedRelease,
        inputs: Tensors | None,
        request_id: str,
        started: float,
        done: Done,
        outcome: Outcome[Tensors],
    ) -> None:
        microseconds = (time.perf_counter() - started) * 1e6
        counters = served.counters
        answer: Tensors | EdgeServeError
        if not isinstance(outcome, Exception):
            counters.succeeded(microseconds, served.rows(inputs) if inputs is not None else 1)
            if request_id and served.classifier is not None:
                self._ring(served.identity.model).remember(request_id, counters, served.classifier, outcome)
            answer = outcome
        elif isinstance(outcome, InputError):
            counters.rejected += 1
            answer = outcome
        else:
            counters.failed(microseconds)
            if not isinstance(outcome, EdgeServeError):
                _LOG.error("%s %s failed", served.identity.model, served.identity.version, exc_info=outcome)
                outcome = DeviceError(f"the model failed: {outcome}")
            answer = outcome
        served.in_flight -= 1
        if served.retired:
            self._close_if_done(served)
        done(answer)

    def feedback(self, model: str, given: Sequence[tuple[str, Labels]]) -> list[Judgement[Counters]]:
        """Count true labels for the releases that answered.

        Raises:
            NotFoundError, TransientError: As `find`.
            InputError: The model does not classify, or a label is none of its classes; nothing was counted.
        """
        if self.find(model).classifier is None:
            raise InputError(
                f"model {model!r} has no classification task, so feedback cannot be judged",
                hint="`edgeserve compile` gives classifiers one; a bare model file has none",
            )
        judgements = self._ring(model).judge(given)
        for judgement in judgements:
            if judgement.release is not None:
                judgement.release.feedback += judgement.rows
                judgement.release.correct += judgement.correct
        unknown = sum(judgement.verdict is Verdict.UNKNOWN for judgement in judgements)
        self.unknown_feedback[model] = self.unknown_feedback.get(model, 0) + unknown
        return judgements

    def _ring(self, model: str) -> FeedbackRing[Counters]:
        ring = self._rings.get(model)
        if ring is None:
            ring = self._rings[model] = FeedbackRing()
        return ring


def _only_errors(done: Callable[[EdgeServeError], None]) -> Done:
    def told(answer: Tensors | EdgeServeError) -> None:
        assert isinstance(answer, EdgeServeError)
        done(answer)

    return told


def _log_failure(outcome: Outcome[None]) -> None:
    if isinstance(outcome, Exception):
        _LOG.error("closing a model failed", exc_info=outcome)
