"""How a model is served: batching, instances, versions, isolation.

Names and meanings are those of Triton's model configuration ("Model Configuration"), so that its users' files and
`config` overrides work; what it does not have is at the end of `ModelConfig`. Every number is held against a range,
which is never wider than what Triton's protobuf can carry: the configuration is also answered in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import (
    MAX_BATCH_ROWS,
    MAX_INSTANCES,
    MAX_PRIORITY_LEVELS,
    MAX_QUEUE_DELAY_US,
    MAX_WAIT_US,
    MAX_WARMUP_RUNS,
)
from edgeserve.contracts.names import label_name

_MAX_INT32: Final = (1 << 31) - 1
_MAX_UINT32: Final = (1 << 32) - 1
_MAX_INT64: Final = (1 << 63) - 1
_MAX_FLOAT32: Final = 3.4028234e38


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is not, either
        raise InputError(f"{name} of {str(value)[:40]} is not between {low} and {high}")


def _all_between(name: str, values: Sequence[float], low: float, high: float) -> None:
    for value in values:
        _between(name, value, low, high)


class TimeoutAction(str, Enum):
    """What becomes of a request that has waited too long."""

    REJECT = "REJECT"
    DELAY = "DELAY"
    """It waits on, behind all that have not."""


class QueuePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelQueuePolicy`: bounds of one priority level's queue."""

    timeout_action: TimeoutAction = TimeoutAction.REJECT
    default_timeout_microseconds: int = 0
    """0 = none."""
    allow_timeout_override: bool = False
    """A request may bring its own timeout; it can only shorten the default."""
    max_queue_size: int = 0
    """0 = no bound."""

    def __post_init__(self) -> None:
        _between("default_timeout_microseconds", self.default_timeout_microseconds, 0, MAX_WAIT_US)
        _between("max_queue_size", self.max_queue_size, 0, _MAX_UINT32)


class DynamicBatching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelDynamicBatching`: requests that wait are run together."""

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    """0 = requests have no priorities."""
    default_priority_level: int = 0
    """1 is the highest; 0 = the lowest there is."""
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policy: dict[int, QueuePolicy] = {}

    def __post_init__(self) -> None:
        _between("max_queue_delay_microseconds", self.max_queue_delay_microseconds, 0, MAX_QUEUE_DELAY_US)
        _between("priority_levels", self.priority_levels, 0, MAX_PRIORITY_LEVELS)
        _between("default_priority_level", self.default_priority_level, 0, self.priority_levels)
        _all_between("preferred_batch_size", self.preferred_batch_size, 1, MAX_BATCH_ROWS)
        outside = next((level for level in self.priority_queue_policy if not 1 <= level <= self.priority_levels), None)
        if outside is not None:
            raise InputError(f"priority_queue_policy names level {outside}, there are {self.priority_levels}")

    def policy(self, level: int) -> QueuePolicy:
        """Of a priority level."""
        return self.priority_queue_policy.get(level, self.default_queue_policy)


class SequenceDirect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`StrategyDirect`: a sequence holds a slot of one instance until it ends."""

    max_queue_delay_microseconds: int = 0
    minimum_slot_utilization: float = 0.0
    """Share of an instance's rows that must have a request before it runs, unless the delay is over."""

    def __post_init__(self) -> None:
        _between("max_queue_delay_microseconds", self.max_queue_delay_microseconds, 0, MAX_QUEUE_DELAY_US)
        _between("minimum_slot_utilization", self.minimum_slot_utilization, 0, 1)


class SequenceOldest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`StrategyOldest`: requests of different sequences are run together, the oldest first."""

    max_candidate_sequences: int = 0
    """Sequences of an instance that are under way at once, the others wait; 0 = as many as a model may have."""
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False

    def __post_init__(self) -> None:
        _between("max_candidate_sequences", self.max_candidate_sequences, 0, _MAX_INT32)
        _all_between("preferred_batch_size", self.preferred_batch_size, 1, MAX_BATCH_ROWS)
        _between("max_queue_delay_microseconds", self.max_queue_delay_microseconds, 0, MAX_QUEUE_DELAY_US)


class ControlKind(str, Enum):
    """`Control.Kind`."""

    START = "CONTROL_SEQUENCE_START"
    READY = "CONTROL_SEQUENCE_READY"
    END = "CONTROL_SEQUENCE_END"
    CORRID = "CONTROL_SEQUENCE_CORRID"


class SequenceControl(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelSequenceBatching.Control`: what an input is told of its sequence."""

    kind: ControlKind = ControlKind.START
    int32_false_true: tuple[int, ...] = ()
    fp32_false_true: tuple[float, ...] = ()
    bool_false_true: tuple[bool, ...] = ()
    data_type: str = ""

    def __post_init__(self) -> None:
        _all_between("int32_false_true", self.int32_false_true, -_MAX_INT32 - 1, _MAX_INT32)
        _all_between("fp32_false_true", self.fp32_false_true, -_MAX_FLOAT32, _MAX_FLOAT32)


class ControlInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelSequenceBatching.ControlInput`."""

    name: str
    control: tuple[SequenceControl, ...]


class SequenceState(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelSequenceBatching.State`: an output that is the input of the sequence's next request; begins as zeros."""

    input_name: str
    output_name: str
    data_type: str = ""
    dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _all_between(f"dims of state {self.input_name[:40]!r}", self.dims, -1, _MAX_INT64)


class SequenceBatching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelSequenceBatching`: requests with the same id are one sequence with state."""

    max_sequence_idle_microseconds: int = 1_000_000
    """After which a sequence that did not end is forgotten; 0 = a second."""
    direct: SequenceDirect | None = None
    oldest: SequenceOldest | None = None
    control_input: tuple[ControlInput, ...] = ()
    state: tuple[SequenceState, ...] = ()

    def __post_init__(self) -> None:
        _between("max_sequence_idle_microseconds", self.max_sequence_idle_microseconds, 0, MAX_WAIT_US)
        if self.direct is not None and self.oldest is not None:
            raise InputError("sequence_batching names both direct and oldest", hint="keep one of them")


class LatestVersions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelVersionPolicy.Latest`."""

    num_versions: int = 1

    def __post_init__(self) -> None:
        _between("num_versions", self.num_versions, 1, _MAX_UINT32)


class AllVersions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelVersionPolicy.All`."""


class SpecificVersions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelVersionPolicy.Specific`."""

    versions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _all_between("versions", self.versions, 1, _MAX_INT64)


class VersionPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelVersionPolicy`: which versions are served; none given = the latest."""

    latest: LatestVersions | None = None
    all: AllVersions | None = None
    specific: SpecificVersions | None = None

    def __post_init__(self) -> None:
        if sum(choice is not None for choice in (self.latest, self.all, self.specific)) > 1:
            raise InputError("version_policy names more than one of latest, all and specific")

    def chosen(self, versions: tuple[int, ...]) -> tuple[int, ...]:
        """Those of `versions` (any order) that are to be served, ascending."""
        found = sorted(set(versions))
        if self.all is not None:
            return tuple(found)
        if self.specific is not None:
            return tuple(version for version in found if version in self.specific.versions)
        return tuple(found[-(self.latest.num_versions if self.latest else 1) :])


class Resource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelRateLimiter.Resource`: so many of a named resource are held while an instance runs."""

    name: str
    count: int = 1
    global_: bool = msgspec.field(name="global", default=False)

    def __post_init__(self) -> None:
        _between(f"count of resource {self.name[:40]!r}", self.count, 1, 1 << 20)


class RateLimiter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelRateLimiter`."""

    resources: tuple[Resource, ...] = ()
    priority: int = 1
    """An instance of priority 1 is scheduled twice as often as one of priority 2; 0 stands for 1."""

    def __post_init__(self) -> None:
        _between("priority of a rate_limiter", self.priority, 0, _MAX_UINT32)


class InstanceGroup(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelInstanceGroup`; fields that do not apply here, such as `gpus`, are ignored."""

    name: str = ""
    kind: str = "KIND_AUTO"
    count: int = 1
    rate_limiter: RateLimiter = RateLimiter()

    def __post_init__(self) -> None:
        _between("count of an instance_group", self.count, 1, MAX_INSTANCES)


class WarmupInput(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelWarmup.Input`."""

    data_type: str
    dims: tuple[int, ...]
    zero_data: bool = False
    random_data: bool = False
    input_data_file: str = ""

    def __post_init__(self) -> None:
        _all_between("dims of a model_warmup", self.dims, -1, _MAX_INT64)


class Warmup(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelWarmup`: a request that is run `count` times before the model is ready."""

    name: str = ""
    batch_size: int = 1
    inputs: dict[str, WarmupInput] = {}
    count: int = 1
    """0 = once."""

    def __post_init__(self) -> None:
        _between(f"model_warmup {self.name[:80]!r}: count", self.count, 0, MAX_WARMUP_RUNS)
        _between(f"model_warmup {self.name[:80]!r}: batch_size", self.batch_size, 1, MAX_BATCH_ROWS)


class ConfigTensor(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelInput`, `ModelOutput`: the part that edgeserve reads; the model's own signature is what holds."""

    name: str
    data_type: str = ""
    dims: tuple[int, ...] = ()
    label_filename: str = ""
    """Of an output: file beside the configuration with a class name a line."""

    def __post_init__(self) -> None:
        _all_between(f"dims of {self.name[:40]!r}", self.dims, -1, _MAX_INT64)


class Isolation(str, Enum):
    """Where a model runs."""

    NONE = "none"
    """In the serving process."""
    PROCESS = "process"
    """In a worker process of its own."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelConfig`, as far as edgeserve knows it; fields of Triton's that it does not know are ignored."""

    name: str = ""
    platform: str = ""
    backend: str = ""
    default_model_filename: str = ""
    max_batch_size: int = 0
    """Most rows of one call when requests are batched; 0 = the model's signature includes the rows."""
    input: tuple[ConfigTensor, ...] = ()
    output: tuple[ConfigTensor, ...] = ()
    version_policy: VersionPolicy = VersionPolicy()
    instance_group: tuple[InstanceGroup, ...] = ()
    """None = one for each core, as `threads` says."""
    dynamic_batching: DynamicBatching | None = None
    sequence_batching: SequenceBatching | None = None
    model_warmup: tuple[Warmup, ...] = ()
    parameters: dict[str, dict[str, str]] = {}
    # What Triton does not have.
    threads: int | None = None
    """Inside one call; 0 = the runtime decides, None = as the server was told."""
    isolation: Isolation = Isolation.NONE
    runtime: str = ""
    """Name of the runtime; empty = by the file or the variant."""
    version_labels: dict[str, int] = {}
    """Label -> version (a release's counter)."""

    def __post_init__(self) -> None:
        _between("max_batch_size", self.max_batch_size, 0, MAX_BATCH_ROWS)
        if self.dynamic_batching is not None and self.sequence_batching is not None:
            raise InputError("a model has either dynamic_batching or sequence_batching, not both")
        if self.dynamic_batching is not None and not self.max_batch_size:
            raise InputError("dynamic_batching needs max_batch_size of 1 or more")
        batching = self.dynamic_batching or (self.sequence_batching and self.sequence_batching.oldest)
        largest = max(batching.preferred_batch_size, default=0) if batching else 0
        if largest > max(self.max_batch_size, 1):
            raise InputError(f"preferred_batch_size {largest} is above max_batch_size {self.max_batch_size}")
        _between("count of all instance_groups together", self.instances, 0, MAX_INSTANCES)
        if self.threads is not None:
            _between("threads", self.threads, 0, 1024)
        for label, version in self.version_labels.items():
            label_name(label)
            _between(f"version of label {label!r} in version_labels", version, 1, _MAX_INT64)

    @property
    def instances(self) -> int:
        """Calls that may run side by side; 0 = as many as the cores give."""
        return sum(group.count for group in self.instance_group)
