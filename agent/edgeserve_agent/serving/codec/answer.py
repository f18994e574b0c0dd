"""Outputs to the body of an answer: JSON, then the bytes of binary tensors (Open Inference Protocol v2 REST, and
Triton's "binary tensor data", "Classification" and shared memory extensions)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from edgeserve.client.blobs import encode_blob
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype, Signature
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve_agent.serving.codec.classification import classify
from edgeserve_agent.serving.codec.json_tensors import to_json
from edgeserve_agent.serving.codec.wishes import Form, Wish, view
from edgeserve_agent.serving.regions import Regions


@dataclass(frozen=True, slots=True)
class Body:
    """Body of an answer."""

    json: bytes
    blobs: list[bytes | memoryview]
    head_length: int | None
    """Bytes of JSON; None when all of it is JSON."""


def encode_answer(
    *,
    model: str,
    version: str,
    request_id: str,
    wishes: Sequence[Wish],
    outputs: Mapping[str, Tensor],
    labels: Sequence[str],
    regions: Regions | None,
) -> Body:
    """Make the body of an answer.

    NaN and infinities, which JSON lacks, become `null` in JSON outputs, as in ECMAScript.

    Args:
        model: Name of the model.
        version: Its version.
        request_id: Echoed when it is not empty.
        wishes: What the request wants back.
        outputs: Every output of the model.
        labels: Names of the classes.
        regions: Where shared memory is.

    Raises:
        InputError: A BYTES output that was asked for as JSON is not UTF-8, or a region is too small.
    """
    described: list[dict[str, object]] = []
    blobs: list[bytes | memoryview] = []
    for wish in wishes:
        array, datatype = outputs[wish.spec.name], wish.spec.datatype
        if wish.classes:
            array, datatype = classify(wish.spec.name, array, wish.classes, labels), Datatype.BYTES
        output: dict[str, object] = {"name": wish.spec.name, "datatype": datatype.value, "shape": array.shape}
        if wish.form is Form.JSON:
            output["data"] = to_json(wish.spec.name, datatype, array)
        elif wish.form is Form.BINARY:
            blob = encode_blob(datatype, array)
            output["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            # No parameters, as Triton: its C++ client takes them for a binary tensor's.
            write_region(wish, array, regions)
        described.append(output)
    document: dict[str, object] = {"model_name": model, "model_version": version}
    if request_id:
        document["id"] = request_id
    document["outputs"] = described
    json = msgspec.json.encode(document)
    any_binary = any(wish.form is Form.BINARY for wish in wishes)
    return Body(json, blobs, len(json) if any_binary else None)


def write_region(wish: Wish, array: Tensor, regions: Regions | None) -> dict[str, object]:
    """Copy an output into shared memory and say where it is.

    Raises:
        InputError: The region is gone, or the output is larger than the part of it that was given.
    """
    assert wish.region is not None
    target = view(regions, wish.region)
    if wish.spec.datatype is Datatype.BYTES:
        blob = encode_blob(wish.spec.datatype, array)
        size = len(blob)
    else:
        blob, size = b"", array.nbytes
    if size > len(target):
        raise InputError(
            f"shared memory size specified with the request for output '{wish.spec.name}' ({len(target)} bytes) "
            f"should be at least {size} bytes to hold the results"
        )
    if wish.spec.datatype is Datatype.BYTES:
        target[:size] = blob
    elif size:
        np.frombuffer(target, array.dtype, array.size)[...] = array.reshape(-1)
    parameters: dict[str, object] = {"shared_memory_region": wish.region.region, "shared_memory_byte_size": size}
    if wish.region.offset:
        parameters["shared_memory_offset"] = wish.region.offset
    return parameters


def json_outputs(signature: Signature, outputs: Tensors) -> list[dict[str, object]]:
    """What there is of a model's outputs, each as an element of `outputs` with its numbers in JSON.

    Raises:
        InputError: An output has no JSON form.
    """
    return [
        {
            "name": spec.name,
            "datatype": spec.datatype.value,
            "shape": outputs[spec.name].shape,
            "data": to_json(spec.name, spec.datatype, outputs[spec.name]),
        }
        for spec in signature.outputs
        if spec.name in outputs
    ]
