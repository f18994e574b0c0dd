"""Ways to serve a model, and which of them lie side by side. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_INSTANCES

_BATCH_ROWS: Final = 64
"""Rows of the largest batch that is tried: so many clients at once are rare on one device."""
_DELAYS_US: Final = (200, 1000, 5000)
"""Times that `tune` lets requests wait for others: from a few hand-overs between threads to a whole small model."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to serve a model."""

    runtime: str = ""
    """Empty = the one that the file or the release names."""
    threads: int = 1
    """Inside one call."""
    instances: int = 1
    """Calls side by side."""
    batch: int = 0
    """`max_batch_size` of dynamic batching; 0 = requests run one by one."""
    preferred: int = 0
    """A `preferred_batch_size`; 0 = none."""
    delay_us: int = 0
    """`max_queue_delay_microseconds`."""

    def __post_init__(self) -> None:
        if not self.batch and (self.preferred or self.delay_us):
            raise InputError("without batching there is neither a preferred size nor a delay")

    def __str__(self) -> str:
        """Short, for tables and plots."""
        batching = ""
        if self.batch:
            preferred = f", preferred {self.preferred}" if self.preferred else ""
            batching = f", batch {self.batch}{preferred}, delay {self.delay_us} us"
        runtime = f"{self.runtime}: " if self.runtime else ""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{runtime}{self.instances} x {threads}{batching}"


@dataclass(frozen=True, kw_only=True)
class Space:
    """All configurations that may be tried.

    Args:
        default: What is served when nobody says anything.
        cores: Of this machine.
        runtimes: Those that can load the model; the first, "", is its own.
        batches: `max_batch_size`s, ascending, the first 0.
        delays_us: Ascending, the first 0.
    """

    default: Configuration
    cores: int
    runtimes: tuple[str, ...] = ("",)
    batches: tuple[int, ...] = (0,)
    delays_us: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Configuration]:
        """Every one, in a fixed order."""
        for runtime in self.runtimes:
            for threads in self._widths(self.cores):
                for instances in self._instances():
                    for batch in self.batches:
                        for preferred in (0, batch // 2) if batch > 2 else (0,):
                            for delay_us in self.delays_us if batch else (0,):
                                found = Configuration(
                                    runtime=runtime,
                                    threads=threads,
                                    instances=instances,
                                    batch=batch,
                                    preferred=preferred,
                                    delay_us=delay_us,
                                )
                                if found in self:
                                    yield found

    def __contains__(self, one: object) -> bool:
        """More than twice as many threads as cores, those of all instances together, never help."""
        return isinstance(one, Configuration) and (
            one == self.default
            or (
                one.runtime in self.runtimes
                and one.batch in self.batches
                and one.delay_us in self.delays_us
                and one.preferred in (0, one.batch // 2 if one.batch > 2 else 0)
                and one.threads in self._widths(self.cores)
                and one.instances in self._instances()
                and one.threads * one.instances <= 2 * self.cores
            )
        )

    def simplicity(self, one: Configuration) -> tuple[int, ...]:
        """Less is simpler: no batching, then what is served anyway, then less of everything."""
        return (
            int(one.batch > 0),
            int(one != self.default),
            int(one.preferred > 0) + int(one.delay_us > 0),
            self.runtimes.index(one.runtime) if one.runtime in self.runtimes else -1,
            one.threads * one.instances,
            one.instances,
            one.batch,
            one.delay_us,
        )

    def seeds(self) -> tuple[Configuration, ...]:
        """Where the search begins: far from each other, so that no hill is out of sight."""
        wide = replace(self.default, threads=self.cores, instances=1)
        starts = [self.default, *(replace(self.default, runtime=runtime) for runtime in self.runtimes), wide]
        if len(self.batches) > 1:
            starts += [replace(one, batch=self.batches[-1]) for one in (self.default, wide) if not one.batch]
        return tuple(dict.fromkeys(one for one in starts if one in self))

    def neighbours(self, one: Configuration) -> tuple[Configuration, ...]:
        """One step along an axis, along the ridge where all cores are busy, and into or out of batching."""
        widths, counts = self._widths(self.cores), self._instances()
        more_threads, fewer_threads = _beside(widths, one.threads)
        more_instances, fewer_instances = _beside(counts, one.instances)
        found = [replace(one, runtime=runtime) for runtime in self.runtimes]
        found += [replace(one, threads=threads) for threads in (more_threads, fewer_threads)]
        found += [replace(one, instances=instances) for instances in (more_instances, fewer_instances)]
        found.append(replace(one, threads=more_threads, instances=fewer_instances))
        found.append(replace(one, threads=fewer_threads, instances=more_instances))
        found += self._batching(one)
        return tuple(dict.fromkeys(near for near in found if near != one and near in self))

    def _batching(self, one: Configuration) -> Iterator[Configuration]:
        if not one.batch:
            # A batch of 2 may not pay where one of 16 does: the middle and the end are in sight of the beginning.
            for batch in sorted({self.batches[len(self.batches) // 2], self.batches[-1]} - {0}):
                yield replace(one, batch=batch)
                yield replace(one, batch=batch, instances=1)
            return
        yield replace(one, batch=0, preferred=0, delay_us=0)
        for batch in _beside(self.batches, one.batch):
            yield replace(one, batch=batch, preferred=0, delay_us=one.delay_us if batch else 0)
        for delay_us in _beside(self.delays_us, one.delay_us):
            yield replace(one, delay_us=delay_us)
        yield replace(one, preferred=0 if one.preferred else one.batch // 2)

    def _widths(self, most: int) -> tuple[int, ...]:
        return tuple(sorted({*(1 << power for power in range(most.bit_length()) if 1 << power <= most), most}))

    def _instances(self) -> tuple[int, ...]:
        # With an accelerator, a second call is prepared while the first one runs: even one core has use for two.
        return self._widths(min(max(self.cores, 2), MAX_INSTANCES))


def space_of(
    *,
    default: Configuration,
    cores: int,
    runtimes: Sequence[str] = (),
    batchable: bool,
    concurrency: int,
    latency_ms: float | None = None,
) -> Space:
    """The space of a model.

    Args:
        default: What is served when nobody says anything.
        cores: Of this machine.
        runtimes: That can load the model beside its own.
        batchable: Rows of several requests can run as one call.
        concurrency: Most requests at once: a batch cannot become larger.
        latency_ms: Bound of the latency: no request waits longer than half of it for others.
    """
    most = min(concurrency, _BATCH_ROWS)
    batches = [1 << power for power in range(1, most.bit_length()) if 1 << power <= most] if batchable else []
    delays = [delay for delay in _DELAYS_US if latency_ms is None or delay <= 500 * latency_ms]
    return Space(
        default=default,
        cores=cores,
        runtimes=("", *runtimes),
        batches=tuple(sorted({0, *batches, *([most] if batchable and most > 1 else [])})),
        delays_us=(0, *delays) if batches else (0,),
    )


def _beside(axis: Sequence[int], value: int) -> tuple[int, int]:
    """The next higher and the next lower value, or `value` itself at an end."""
    higher = [one for one in axis if one > value]
    lower = [one for one in axis if one < value]
    return min(higher, default=value), max(lower, default=value)
