"""Processes of trials: started, loaded, watched and ended."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError, TrustError
from edgeserve.contracts.limits import KIB, TUNE_LOAD_S, TUNE_RESERVE_BYTES
from edgeserve.contracts.model_config import Isolation, ModelConfig
from edgeserve_agent.isolation.memory import process_memory
from edgeserve_agent.tune.messages import STRETCH, Answer, Command, Failed, Measure, Measured, Ready, Start
from edgeserve_agent.tune.objective import Sample
from edgeserve_agent.tune.settings import model_config
from edgeserve_agent.tune.space import Configuration

A = TypeVar("A", Ready, Measured)

_LOOK_S: Final = 0.1
"""Between two looks at a trial's memory."""
_GRACE_S: Final = 30.0
_MOST_ALIVE: Final = 6
_LAST_WORDS: Final = 300
_ERRORS: Final = {2: InputError, 3: TrustError}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is tuned."""

    path: Path
    """A model file, a release, or the folder of an unpacked variant."""
    is_variant: bool = False
    version: str = "1"
    """Of the variant; a model file or a release says its own."""
    name: str = ""
    """To serve it under; empty = by the file or the release."""
    base: ModelConfig
    """Its settings as they are; tuning changes some of them."""
    inputs: Path | None = None
    """npz file with rows to send; None = random numbers."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How it is loaded."""

    concurrencies: tuple[int, ...]
    window_s: float
    percentile: float


class Trial:
    """One configuration in a process of its own, which ends with this one's pipe."""

    def __init__(self, subject: Subject, configuration: Configuration, scratch: Path) -> None:
        self.memory_bytes = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        # Made of the machine's own modules, wherever it is started.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgeserve_agent.tune.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        start = Start(
            path=str(subject.path.absolute()),
            is_variant=subject.is_variant,
            version=subject.version,
            name=subject.name,
            # What a process of its own costs is the same for all, and its memory could not be seen from here.
            config=msgspec.structs.replace(model_config(configuration, subject.base), isolation=Isolation.NONE),
            scratch=str(scratch / "unpacked"),
            inputs=str(subject.inputs.absolute()) if subject.inputs else "",
            reference=str(scratch / "answers.npz"),
        )
        try:
            self.ready = self._ask(start, Ready, TUNE_LOAD_S)
        except BaseException:
            self.close()
            raise

    def measure(self, load: Load) -> tuple[Sample, ...]:
        """Put each load on it.

        Raises:
            DeviceError: It ended, or did not answer.
        """
        return tuple(self._sample(load, concurrency) for concurrency in load.concurrencies)

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _sample(self, load: Load, concurrency: int) -> Sample:
        found = self._ask(
            Measure(concurrency=concurrency, window_s=load.window_s, percentile=load.percentile),
            Measured,
            2 * STRETCH * load.window_s + _GRACE_S,
        )
        if found.failed:
            raise DeviceError(f"requests failed: {found.error}")
        return Sample(
            concurrency=concurrency,
            requests=found.requests,
            throughput=found.requests / found.seconds,
            p50_ms=found.p50_ms,
            tail_ms=found.tail_ms,
            cpu_ms=1e3 * found.cpu_s / max(found.requests, 1),
        )

    def _ask(self, command: Command, answer: type[A], timeout_s: float) -> A:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_s
        line = b""
        try:
            process.stdin.write(msgspec.json.encode(command) + b"\n")
            process.stdin.flush()
            while not line.endswith(b"\n"):
                self.memory_bytes = max(self.memory_bytes, process_memory(process.pid).total)
                if time.monotonic() > deadline:
                    raise DeviceError(f"it did not answer within {timeout_s:.0f} s")
                if select.select([process.stdout], [], [], _LOOK_S)[0]:
                    part = os.read(process.stdout.fileno(), 64 * KIB)
                    if not part:
                        raise DeviceError(f"its process ended: {self._last_words()}")
                    line += part
        except BrokenPipeError:
            raise DeviceError(f"its process ended: {self._last_words()}") from None
        self.memory_bytes = max(self.memory_bytes, process_memory(process.pid).total)
        found = msgspec.json.decode(line, type=Answer)
        if isinstance(found, Failed):
            raise _ERRORS.get(found.exit_code, DeviceError)(found.failed, hint=found.hint)
        assert isinstance(found, answer)
        return found

    def _last_words(self) -> str:
        code = self._process.wait()
        if code == -9:
            return "it was killed, most likely because memory ran out"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        return f"exit code {code}: {said[-_LAST_WORDS:]}"


class Bench:
    """Trials by configuration; those used last stay alive, as far as the machine has memory for them.

    Args:
        subject: What is served.
        scratch: Empty folder.
    """

    def __init__(self, subject: Subject, scratch: Path) -> None:
        self._subject = subject
        self._scratch = scratch
        self._alive: dict[Configuration, Trial] = {}
        self._largest = 0

    def trial(self, configuration: Configuration) -> Trial:
        """The process of `configuration`, started if it is not there.

        Raises:
            EdgeServeError: It cannot be served like this; the class is that of whose fault it is.
        """
        found = self._alive.pop(configuration, None)
        if found is None:
            self._make_room()
            found = Trial(self._subject, configuration, self._scratch)
        self._alive[configuration] = found
        return found

    def measure(self, configuration: Configuration, load: Load) -> tuple[tuple[Sample, ...], int]:
        """Put load on `configuration`: what came of it, and the most memory that its process had.

        Raises:
            EdgeServeError: It cannot be served like this, or failed under load.
        """
        trial = self.trial(configuration)
        try:
            samples = trial.measure(load)
        except EdgeServeError:
            self.end(configuration)
            raise
        self._largest = max(self._largest, trial.memory_bytes)
        return samples, trial.memory_bytes

    def end(self, configuration: Configuration) -> None:
        """End its process, if there is one."""
        trial = self._alive.pop(configuration, None)
        if trial is not None:
            trial.close()

    def close(self) -> None:
        """End all processes."""
        for configuration in list(self._alive):
            self.end(configuration)

    def _make_room(self) -> None:
        """End those that were used longest ago until another one like the largest fits."""
        while self._alive and (
            len(self._alive) >= _MOST_ALIVE or available_bytes() < 2 * self._largest + TUNE_RESERVE_BYTES
        ):
            self.end(next(iter(self._alive)))


@contextlib.contextmanager
def bench(subject: Subject) -> Iterator[Bench]:
    """A bench whose processes and files are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="edgeserve-tune-") as scratch:
        made = Bench(subject, Path(scratch))
        try:
            yield made
        finally:
            made.close()


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that programs may still take: the kernel's estimate, or less if this control group is allowed less."""
    fields = dict(line.split(":", 1) for line in _text(root / "proc/meminfo").splitlines() if ":" in line)
    found = int(fields.get("MemAvailable", "0 kB").split()[0]) * KIB or 1 << 62
    group = root / "sys/fs/cgroup"
    most, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    return min(found, int(most) - int(used)) if most.isdecimal() and used.isdecimal() else found


def in_turn(configurations: Sequence[Configuration], number: int) -> list[Configuration]:
    """The order of round `number`: each time another one is first, so that no place is an advantage."""
    start = number % len(configurations)
    return [*configurations[start:], *configurations[:start]]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
