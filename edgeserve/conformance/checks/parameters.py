"""Areas `sequence` and `schedule-policy`: parameters that clients send to any model."""

from __future__ import annotations

from typing import Final

from edgeserve.conformance.check import Body, Level, add, check
from edgeserve.conformance.infer import outputs_of
from edgeserve.conformance.target import Target

_SEQUENCE: Final = "Triton, extension_sequence; tritonclient sends sequence_end false"
_POLICY: Final = "Triton, extension_schedule_policy"


def _accepted(parameters: dict[str, object]) -> Body:
    def body(target: Target) -> None:
        outputs_of(target.infer(target.model, parameters=parameters))

    return body


_PARAMETERS: Final[dict[str, tuple[str, str, str, dict[str, object]]]] = {
    "sequence.none": (
        "A sequence_id of 0 means that the request belongs to no sequence",
        _SEQUENCE,
        "sequence",
        {"sequence_id": 0, "sequence_start": False, "sequence_end": False},
    ),
    "sequence.number": (
        "A sequence_id that is a number, with start and end, is accepted by a model without state",
        _SEQUENCE,
        "sequence",
        {"sequence_id": 42, "sequence_start": True, "sequence_end": True},
    ),
    "sequence.large-number": (
        "A sequence_id of 64 bits is accepted",
        f"{_SEQUENCE}; uint64",
        "sequence",
        {"sequence_id": 2**63 + 5, "sequence_start": True, "sequence_end": True},
    ),
    "sequence.text": (
        "A sequence_id that is a text is accepted by a model without state",
        _SEQUENCE,
        "sequence(string_id)",
        {"sequence_id": "camera-7", "sequence_start": True, "sequence_end": True},
    ),
    "schedule-policy.priority": ("A priority is accepted", _POLICY, "schedule_policy", {"priority": 1}),
    "schedule-policy.timeout": (
        "A timeout in microseconds is accepted",
        _POLICY,
        "schedule_policy",
        {"timeout": 10_000_000},
    ),
    "schedule-policy.both": (
        "Priority and timeout 0, the defaults, are accepted",
        _POLICY,
        "schedule_policy",
        {"priority": 0, "timeout": 0},
    ),
}

for _id, (_title, _source, _extension, _given) in _PARAMETERS.items():
    add(_id, title=_title, level=Level.EXTENSION, source=_source, extension=_extension, body=_accepted(_given))


@check("sequence.concurrent", level=Level.EXTENSION, source=_SEQUENCE, extension="sequence")
def interleaved(target: Target) -> None:
    """Requests of two sequences in turn are all answered."""
    for step in range(3):
        for sequence in (7, 8):
            parameters = {"sequence_id": sequence, "sequence_start": step == 0, "sequence_end": step == 2}
            outputs_of(target.infer(target.model, parameters=parameters))
