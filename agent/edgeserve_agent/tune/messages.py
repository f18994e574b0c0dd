"""What the search and the process of a trial say to each other: JSON lines over the trial's stdin and stdout."""

from __future__ import annotations

from typing import Final

import msgspec

from edgeserve.contracts.model_config import ModelConfig

LEAST_REQUESTS: Final = 10
"""A window goes on until there are as many answers, and one for each client: of fewer no percentile can be told."""
STRETCH: Final = 20
"""... but not longer than this many windows: slower models are beyond any latency bound that was asked for."""


class Start(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first line: what to serve and how."""

    path: str
    is_variant: bool = False
    """It is a folder with an unpacked variant, not a model file or a release."""
    version: str = "1"
    """... of this version."""
    name: str = ""
    config: ModelConfig
    scratch: str
    inputs: str = ""
    """npz file with inputs; empty = random ones."""
    reference: str
    """npz file with the answers of the first configuration, which writes it."""


class Measure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load for a while."""

    concurrency: int
    window_s: float
    percentile: float


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to `Start`."""

    model: str
    version: str
    runtime: str
    runtime_version: str
    device: str
    call_us: float | None
    """Median duration of one call with zeros; None = it could not be run on them."""
    batchable: bool
    why_not: str = ""
    """... it is not."""
    requests: int
    """Different ones that are sent."""


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to `Measure`."""

    requests: int
    seconds: float
    p50_ms: float
    tail_ms: float
    cpu_s: float
    failed: int = 0
    error: str = ""
    """The first failure."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to `Start` when it cannot be served like this."""

    failed: str
    hint: str = ""
    exit_code: int = 1


Command = Start | Measure
Answer = Ready | Measured | Failed
