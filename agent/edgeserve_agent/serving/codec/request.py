"""Inference requests: bytes to arrays, and what the answer is to look like.

JSON is Open Inference Protocol v2 REST; binary is Triton's "binary tensor data" extension: the JSON comes first, the
tensors' bytes behind it in order, without padding. A head that comes again is found by its bytes; one that differs
only in id or numbers is found by the rest of it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_CACHED_HEAD_BYTES, MAX_CACHED_HEADS
from edgeserve.contracts.tensors import Signature
from edgeserve.runtimes.base import Tensors
from edgeserve_agent.serving.codec.head import Parameters, RequestHead, checked_id, parse_head
from edgeserve_agent.serving.codec.plan import Plan, plan_of, raw_plan
from edgeserve_agent.serving.regions import Regions

Decoded = tuple[Plan, str, Tensors]
"""A request in terms of the model: its plan, id and inputs."""


class RequestDecoder:
    """Decodes the inference requests of one model."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._by_bytes: dict[bytes, Plan] = {}
        self._whole: dict[bytes, Plan] = {}
        self._by_content: dict[Hashable, Plan] = {}

    def decode(self, body: bytes | memoryview, head_length: int | None, regions: Regions | None = None) -> Decoded:
        """Read a request.

        Args:
            body: The whole body.
            head_length: Bytes of JSON at its start (`Inference-Header-Content-Length`); None = all is JSON, 0 = there
                is none: the body is the model's only input.
            regions: Shared memory.

        Raises:
            InputError: It is not a request that the protocol allows, or an output is none of the model's; whether the
                inputs fit the model is not looked at.
        """
        if head_length is None:
            # A body without numbers is one whose tensors are in shared memory: it comes again as it is.
            known = self._whole.get(bytes(body)) if self._whole and len(body) <= MAX_CACHED_HEAD_BYTES else None
            if known is not None:
                return known, "", known.inputs(None, body, len(body), regions)
            return self._parsed(body, len(body), body, regions)
        if not 0 <= head_length <= len(body):
            raise InputError(
                f"Inference-Header-Content-Length is {head_length}, it must be 0 to the body's {len(body)}"
            )
        if not head_length:
            plan = raw_plan(self._signature, len(body))
            return plan, "", plan.inputs(None, body, 0, regions)
        head = bytes(body[:head_length])
        known = self._by_bytes.get(head)
        if known is not None:
            return known, "", known.inputs(None, body, head_length, regions)
        return self._parsed(head, head_length, body, regions)

    def _parsed(
        self, json: bytes | memoryview, head_length: int, body: bytes | memoryview, regions: Regions | None
    ) -> Decoded:
        head = parse_head(json)
        plan = self._plan(head, head_length)
        inputs = plan.inputs(head.inputs, body, head_length, regions)
        # A head with an id rarely comes again; one with numbers in it would keep them in memory.
        if not head.id and not plan.has_json and head_length <= MAX_CACHED_HEAD_BYTES:
            _keep(self._by_bytes if plan.tail else self._whole, bytes(json), plan)
        return plan, checked_id(head.id), inputs

    def _plan(self, head: RequestHead, head_length: int) -> Plan:
        content = _content(head)
        known = self._by_content.get(content) if content is not None else None
        if known is None:
            known = plan_of(head, self._signature)
            # Its numbers are not part of what is kept.
            kept_bytes = head_length - sum(memoryview(one.data).nbytes for one in head.inputs)
            if content is not None and kept_bytes <= MAX_CACHED_HEAD_BYTES:
                _keep(self._by_content, content, known)
        return known


def _keep(plans: dict[Any, Plan], key: Hashable, plan: Plan) -> None:
    if len(plans) >= MAX_CACHED_HEADS:
        plans.clear()
    plans[key] = plan


def _content(head: RequestHead) -> Hashable:
    """All of a head but its id and numbers, to find it again by; None where it is too unusual for that."""
    try:
        inputs = [
            (one.name, one.datatype, one.shape, bool(one.data), _items(one.parameters) if one.parameters else ())
            for one in head.inputs
        ]
        outputs = [(one.name, _items(one.parameters)) for one in head.outputs] if head.outputs else ()
        key = (*inputs, None, *outputs, None, _items(head.parameters) if head.parameters else ())
        hash(key)
    except TypeError:
        return None
    return key


def _items(parameters: Parameters) -> Hashable:
    # The type is part of it: true and 1 are equal.
    return tuple([(name, type(value), value) for name, value in parameters.items()])
