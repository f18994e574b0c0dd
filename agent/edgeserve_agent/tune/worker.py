"""The process of one trial: serves the model in one configuration and loads it when told to.

It has what a serving process has, but no socket: what it takes of memory and CPU is the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sys
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError

_OOM_FIRST: Final = b"1000"
_AGREE: Final = 0.01
"""Differences of answers between configurations, as a share of the largest number: another order of sums, or fp16."""


def main() -> None:
    """Serve what the first line of stdin says, until stdin ends."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Libraries print to stdout as they like; the search must not read that.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(message)s", stream=sys.stderr)
    with contextlib.suppress(OSError):
        # When memory runs out, the trial is to die and nothing else.
        Path("/proc/self/oom_score_adj").write_bytes(_OOM_FIRST)
    from edgeserve_agent.serving.server import run

    run(lambda loop, stop: _serve(loop, stop, answers))


async def _serve(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, answers: IO[bytes]) -> None:
    from edgeserve_agent.tune.messages import Command, Failed, Measure, Start

    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    trial: _Trial | None = None
    ending = asyncio.ensure_future(stop.wait())
    while True:
        reading = asyncio.ensure_future(reader.readline())
        await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
        line = reading.result() if reading.done() else b""
        if not line:
            break
        command = msgspec.json.decode(line, type=Command)
        answer: object
        match command:
            case Start():
                try:
                    trial = _Trial(loop, command)
                    answer = await trial.start()
                except EdgeServeError as error:
                    answer = Failed(failed=error.message, hint=error.hint, exit_code=error.exit_code)
            case Measure():
                assert trial is not None
                answer = await trial.measure(command)
        answers.write(msgspec.json.encode(answer) + b"\n")
    reading.cancel()
    ending.cancel()
    # The model is not closed in order: the process ends, and a call that hangs must not keep it.


class _Trial:
    def __init__(self, loop: asyncio.AbstractEventLoop, start: Any) -> None:  # noqa: ANN401 - imported late
        from edgeserve_agent.serving.cores import worker_threads
        from edgeserve_agent.serving.dataplane import DataPlane

        self._start = start
        self._loop = loop
        self._plane = DataPlane(loop, workers=worker_threads(start.config.threads or 1))
        self._load: Any = None

    async def start(self) -> object:
        from edgeserve.runtimes.variant import find_runtime
        from edgeserve_agent.serving.scheduling.stateful import stateful
        from edgeserve_agent.tune.load import ClosedLoop
        from edgeserve_agent.tune.messages import Ready

        identity, opener = self._source()
        await self._plane.load(identity, opener)
        self._plane.activate(identity.model, identity.release)
        served = self._plane.find(identity.model)
        model, opened = served.model, served.opened
        state = stateful(model.signature, served.config, opened.task)
        requests = self._requests(model, state.signature if state else served.signature)
        if state is None:
            self._compare(model.run(requests[0]))
        self._load = ClosedLoop(self._loop, self._plane, served, requests, sequences=state is not None)
        why_not = _why_not_batched(model.signature, identity.model, stateful=state is not None)
        return Ready(
            model=identity.model,
            version=identity.version,
            runtime=opened.runtime,
            runtime_version=find_runtime(opened.runtime).version(),
            device=model.executing_device,
            call_us=served.call_us if math.isfinite(served.call_us) else None,
            batchable=not why_not,
            why_not=why_not,
            requests=len(requests),
        )

    async def measure(self, command: Any) -> object:  # noqa: ANN401 - imported late
        return await self._load.run(
            concurrency=command.concurrency, window_s=command.window_s, percentile=command.percentile
        )

    def _source(self) -> tuple[Any, Any]:
        from edgeserve_agent.serving.model_source import OpenOptions
        from edgeserve_agent.serving.opened import open_variant
        from edgeserve_agent.serving.served import Identity
        from edgeserve_agent.serving.standalone import SingleModel

        start = self._start
        path, threads = Path(start.path), start.config.threads or 1
        if start.is_variant:
            identity = Identity(
                model=start.name, version=start.version, release="sha256:variant", variant="sha256:variant"
            )
            config = start.config
            return identity, lambda: open_variant(path, simulate=False, threads=threads, config=config)
        options = OpenOptions(threads=threads, scratch=Path(start.scratch))
        source = SingleModel(path, name=start.name, options=options, config=start.config)
        found = source.find(source.name).versions[-1]
        return found.identity, found.open

    def _requests(self, model: Any, signature: Any) -> Any:  # noqa: ANN401 - numpy is imported late
        from edgeserve_agent.tune.inputs import made_up_requests, read_requests

        if self._start.inputs:
            return read_requests(Path(self._start.inputs), signature)
        return made_up_requests(model, signature)

    def _compare(self, outputs: Any) -> None:  # noqa: ANN401 - numpy is imported late
        """A runtime that answers something else is no choice, however fast it is."""
        from edgeserve import npz
        from edgeserve.contracts.limits import TUNE_INPUT_BYTES
        from edgeserve_agent.tune.inputs import difference

        reference = Path(self._start.reference)
        numbers = {name: array for name, array in outputs.items() if array.dtype.kind in "fiub"}
        if not reference.exists():
            reference.write_bytes(npz.dump(numbers))
            return
        expected = npz.load(reference, what="the first configuration's answer", limit=TUNE_INPUT_BYTES)
        found = difference(numbers, expected)
        if found > _AGREE:
            raise DeviceError(f"its answers differ from the first configuration's by {found:.1%} of the largest number")


def _why_not_batched(signature: Any, name: str, *, stateful: bool) -> str:  # noqa: ANN401 - imported late
    from edgeserve_agent.serving.scheduling.joining import check_batched, fixed_output

    if stateful:
        return "its requests belong to sequences"
    try:
        check_batched(signature, name)
    except InputError as error:
        return error.message
    uneven = fixed_output(signature)
    return f"output {uneven.name!r} has a fixed number of rows" if uneven else ""


if __name__ == "__main__":
    main()
