"""Outputs to `ModelInferResponse`, in pieces that the transport joins.

All outputs are in `raw_output_contents`, because tritonclient reads nothing else; one that was written to shared memory
has an empty entry there, because clients find the others by their position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgeserve.client.blobs import encode_blob
from edgeserve.client.oip_proto import messages
from edgeserve.contracts.tensors import Datatype
from edgeserve.runtimes.base import Tensor
from edgeserve_agent.serving.codec.answer import write_region
from edgeserve_agent.serving.codec.classification import classify
from edgeserve_agent.serving.codec.wishes import Form, Wish
from edgeserve_agent.serving.grpc.request import Plan
from edgeserve_agent.serving.grpc.wire import raw_output, response_id
from edgeserve_agent.serving.regions import Regions
from edgeserve_agent.serving.rpc import Message
from edgeserve_agent.serving.served import ServedRelease

_MAX_PREFIXES: Final = 16
_RELEASE: Final = "edgeserve-release"
"""Parameter of an answer: digest of the release that gave it, as the header of that name over HTTP."""


def answer_chunks(
    plan: Plan, identity: str, served: ServedRelease, outputs: Mapping[str, Tensor], regions: Regions | None
) -> list[Message]:
    """The message of an answer.

    Args:
        plan: Of the request.
        identity: Its id.
        served: What answered.
        outputs: Every output of the model.
        regions: Where shared memory is; None = switched off.

    Raises:
        InputError: An output cannot be sorted into classes, or a region is too small.
    """
    chunks = _plain_chunks(plan, served, outputs) if plan.plain else _all_chunks(plan, served, outputs, regions)
    if identity:
        chunks.insert(0, response_id(identity))  # the order of fields means nothing
    return chunks


def _plain_chunks(plan: Plan, served: ServedRelease, outputs: Mapping[str, Tensor]) -> list[Message]:
    # All but the tensors is the same to the letter when the shapes are.
    wishes = plan.wishes
    arrays = [outputs[wish.spec.name] for wish in wishes]
    key: Any = arrays[0].shape if len(arrays) == 1 else tuple([array.shape for array in arrays])
    prefixes = plan.prefixes.get(key)
    if prefixes is None:
        head = _head(
            served, [(wish, wish.spec.datatype, array, {}) for wish, array in zip(wishes, arrays, strict=True)]
        )
        sizes = [raw_output(array.nbytes) for array in arrays]
        prefixes = (head + sizes[0], *sizes[1:])
        if len(plan.prefixes) >= _MAX_PREFIXES:
            plan.prefixes.clear()
        plan.prefixes[key] = prefixes
    chunks: list[Message] = []
    for prefix, wish, array in zip(prefixes, wishes, arrays, strict=True):
        chunks += (prefix, encode_blob(wish.spec.datatype, array))
    return chunks


def _all_chunks(
    plan: Plan, served: ServedRelease, outputs: Mapping[str, Tensor], regions: Regions | None
) -> list[Message]:
    described: list[tuple[Wish, Datatype, Tensor, Mapping[str, object]]] = []
    blobs: list[Message] = []
    for wish in plan.wishes:
        array, datatype = outputs[wish.spec.name], wish.spec.datatype
        parameters: Mapping[str, object] = {}
        blob: Message = b""
        if wish.classes:
            array, datatype = classify(wish.spec.name, array, wish.classes, served.labels), Datatype.BYTES
        if wish.form is Form.REGION:
            parameters = write_region(wish, array, regions)
        else:
            blob = encode_blob(datatype, array)
        described.append((wish, datatype, array, parameters))
        blobs += (raw_output(len(blob)), blob)
    return [_head(served, described), *blobs]


def _head(served: ServedRelease, described: Sequence[tuple[Wish, Datatype, Tensor, Mapping[str, object]]]) -> bytes:
    """The response without `id` and `raw_output_contents`."""
    identity = served.identity
    response = messages().ModelInferResponse(model_name=identity.model, model_version=identity.version)
    response.parameters[_RELEASE].string_param = identity.release
    for wish, datatype, array, parameters in described:
        output = response.outputs.add(name=wish.spec.name, datatype=datatype.value, shape=array.shape)
        for name, value in parameters.items():
            if isinstance(value, int):
                output.parameters[name].int64_param = value
            else:
                output.parameters[name].string_param = value
    head: bytes = response.SerializeToString(deterministic=True)
    return head
