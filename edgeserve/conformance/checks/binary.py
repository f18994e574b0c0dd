"""Area `binary`: tensors as bytes behind the JSON of a request or answer (`extension_binary_data.md`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from edgeserve.conformance.check import Body, Level, Skip, add, check
from edgeserve.conformance.http import Answer, model_path
from edgeserve.conformance.infer import HEAD_LENGTH, build, outputs_of, same, show
from edgeserve.conformance.target import NO_JSON, Target, samples
from edgeserve.contracts.tensors import Datatype

EXTENSION: Final = "binary_tensor_data"
_DOCUMENT: Final = "Triton, extension_binary_data"
_PRECEDENCE: Final = f"{_DOCUMENT}; Triton's L0_http: binary_data and binary_data_output"


@check("binary.input", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def binary_input(target: Target) -> None:
    """Binary inputs give the answer that JSON inputs give; outputs stay JSON when nothing asks for binary ones."""
    wanted = target.outputs(target.model)
    answer = target.infer(target.model, target.model.givens(binary=True))
    _same_outputs(answer, wanted, binary=dict.fromkeys(wanted, False))


@check("binary.output", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def binary_output(target: Target) -> None:
    """An output with "binary_data": true comes as bytes, with its binary_data_size and the header for the JSON."""
    wanted = target.outputs(target.model)
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in wanted]
    _same_outputs(target.infer(target.model, outputs=outputs), wanted, binary=dict.fromkeys(wanted, True))


@check("binary.output-all", level=Level.EXTENSION, source=_PRECEDENCE, extension=EXTENSION)
def output_all(target: Target) -> None:
    """With "binary_data_output": true every output comes as bytes, also for JSON inputs, as tritonclient asks."""
    wanted = target.outputs(target.model)
    answer = target.infer(target.model, parameters={"binary_data_output": True})
    _same_outputs(answer, wanted, binary=dict.fromkeys(wanted, True))


@check("binary.output-own-setting", level=Level.EXTENSION, source=_PRECEDENCE, extension=EXTENSION)
def own_setting(target: Target) -> None:
    """An output's own "binary_data": false wins over "binary_data_output": true.

    What the outputs without a setting of their own do is left open: the document says bytes, Triton gives JSON.
    """
    wanted = target.outputs(target.model)
    outputs: list[dict[str, Any]] = [{"name": name} for name in wanted]
    outputs[0]["parameters"] = {"binary_data": False}
    answer = target.infer(target.model, outputs=outputs, parameters={"binary_data_output": True})
    found = outputs_of(answer)
    first = next(iter(wanted))
    answer.must(not found[first].binary, f"output {first!r} as JSON")
    answer.must(all(same(found[name].array, output.array) for name, output in wanted.items()), "the same outputs")


@check("binary.output-mixed", level=Level.EXTENSION, source=_PRECEDENCE, extension=EXTENSION)
def mixed_output(target: Target) -> None:
    """Of two outputs one comes as bytes and the other as JSON, as asked; what is not asked for is JSON."""
    model = target.add_sub()
    wanted = target.outputs(model)
    for other in ({"parameters": {"binary_data": False}}, {}):
        outputs = [{"name": "OUTPUT0", "parameters": {"binary_data": True}}, {"name": "OUTPUT1", **other}]
        _same_outputs(target.infer(model, outputs=outputs), wanted, binary={"OUTPUT0": True, "OUTPUT1": False})


@check("binary.input-mixed", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def mixed_input(target: Target) -> None:
    """One input may be binary and the other JSON."""
    model = target.add_sub()
    arrays = {"INPUT0": np.arange(16, dtype=np.int32), "INPUT1": np.full(16, 5, dtype=np.int32)}
    for binary in ("INPUT0", "INPUT1"):
        givens = [
            replace(given, array=arrays[given.name].reshape(1, 16), binary=given.name == binary)
            for given in model.givens()
        ]
        answer = target.infer(model, givens)
        found = outputs_of(answer)["OUTPUT1"].array
        wanted = (arrays["INPUT0"] - arrays["INPUT1"]).reshape(1, 16)
        answer.must(same(found, wanted), f"OUTPUT1: {show(wanted)}", show(found))


@check("binary.two-inputs", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def two_inputs(target: Target) -> None:
    """The bytes of several inputs follow one another in the order of the JSON's inputs, whatever that is."""
    model = target.add_sub()
    arrays = {"INPUT0": np.arange(16, dtype=np.int32), "INPUT1": np.full(16, 5, dtype=np.int32)}
    for turned in (False, True):
        givens = [replace(given, array=arrays[given.name].reshape(1, 16), binary=True) for given in model.givens()]
        answer = target.infer(model, givens[::-1] if turned else givens)
        found = outputs_of(answer)["OUTPUT1"].array
        wanted = (arrays["INPUT0"] - arrays["INPUT1"]).reshape(1, 16)
        answer.must(same(found, wanted), f"OUTPUT1: {show(wanted)}", show(found))


@check("binary.content-type", level=Level.SHOULD, source=_DOCUMENT, extension=EXTENSION)
def content_type(target: Target) -> None:
    """An answer with bytes has the content type application/octet-stream."""
    answer = target.infer(target.model, parameters={"binary_data_output": True}).ok()
    answer.must(answer.headers.get("content-type") == "application/octet-stream", "application/octet-stream")


@check("binary.header-of-json", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def header_of_json(target: Target) -> None:
    """A request whose header counts its whole JSON, with no bytes behind it, is answered like any JSON request."""
    body, _ = build(target.model.givens())
    outputs_of(_post(target, body, len(body)))


@check("binary.size-too-small", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def size_too_small(target: Target) -> None:
    """A binary_data_size smaller than the shape needs is refused."""
    head, blob = _split(target)
    _resized(head, len(blob) - 1)
    _post_parts(target, head, blob[:-1]).refused()


@check("binary.size-too-large", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def size_too_large(target: Target) -> None:
    """A binary_data_size larger than the shape needs is refused, though the bytes are there."""
    head, blob = _split(target)
    _resized(head, len(blob) + 4)
    _post_parts(target, head, blob + b"\0\0\0\0").refused()


@check("binary.bytes-missing", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def bytes_missing(target: Target) -> None:
    """A body that ends before the declared bytes do is refused."""
    head, blob = _split(target)
    _post_parts(target, head, blob[:-1]).refused()


@check("binary.bytes-left", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def bytes_left(target: Target) -> None:
    """Bytes behind the last declared input are refused."""
    head, blob = _split(target)
    _post_parts(target, head, blob + b"\0\0\0\0").refused()


@check("binary.size-not-a-number", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def size_not_a_number(target: Target) -> None:
    """A binary_data_size that is negative or a text is refused."""
    for size in (-4, "four"):
        head, blob = _split(target)
        _resized(head, size)
        _post_parts(target, head, blob).refused()


@check("binary.header-too-long", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def header_too_long(target: Target) -> None:
    """A header length beyond the body is refused."""
    body, _ = build(target.model.givens())
    _post(target, body, len(body) + 100).refused()


@check("binary.header-too-short", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def header_too_short(target: Target) -> None:
    """A header length that cuts the JSON is refused."""
    body, _ = build(target.model.givens())
    _post(target, body, len(body) - 5).refused()


@check(
    "binary.header-not-a-number",
    level=Level.EXTENSION,
    source="Triton's L0_http: inference_header_content_length_out_of_range",
    extension=EXTENSION,
)
def header_not_a_number(target: Target) -> None:
    """A header length that is negative, beyond 32 bits or no number is refused, and the server goes on."""
    body, _ = build(target.model.givens())
    for length in ("99999999999", "-1", "many"):
        _post(target, body, length).refused()
    target.still_answers("a header length out of range")


@check(
    "binary.recovery",
    level=Level.EXTENSION,
    source="Triton's L0_http: the server is still working",
    extension=EXTENSION,
)
def recovery(target: Target) -> None:
    """After wrong binary requests right ones are answered, JSON and binary."""
    head, blob = _split(target)
    for data in (blob[:-1], blob + b"\0", b""):
        _post_parts(target, head, data)
    outputs_of(_post_parts(target, head, blob))
    target.still_answers("wrong binary requests")


@check(
    "binary.empty-json-error",
    level=Level.EXTENSION,
    source="tritonclient reads every error as JSON",
    extension=EXTENSION,
)
def errors_are_json(target: Target) -> None:
    """Errors are JSON also when binary outputs were asked for."""
    model = target.model
    answer = target.infer(model, [], parameters={"binary_data_output": True})
    answer.refused()
    answer.must(HEAD_LENGTH not in answer.headers, f"no {HEAD_LENGTH} on an error")


def _exact(datatype: Datatype) -> Body:
    def body(target: Target) -> None:
        model = target.identity(datatype)
        spec = model.inputs[0]
        array = samples(datatype, spec.concrete(4 if spec.dynamic else 1))
        given = replace(model.givens()[0], array=array, binary=True)
        answer = target.infer(model, [given], parameters={"binary_data_output": True})
        found = outputs_of(answer)[model.outputs[0].name]
        answer.must(found.binary, "binary data")
        answer.must(same(found.array, array), f"output of {show(array)}", show(found.array))

    return body


for _datatype in Datatype:
    if _datatype not in NO_JSON and _datatype is not Datatype.BYTES:
        add(
            f"binary.{_datatype.value.lower()}",
            title=f"{_datatype.value} data as bytes, with the datatype's extremes, come back bit for bit",
            level=Level.EXTENSION,
            source=f"{_DOCUMENT}; OIP REST, Tensor Data Types",
            extension=EXTENSION,
            body=_exact(_datatype),
        )


@check("binary.nan", level=Level.EXTENSION, source="Triton's L0_nan_inf", extension=EXTENSION)
def nan(target: Target) -> None:
    """NaN and infinities pass as bytes, in and out."""
    model = target.identity(Datatype.FP32)
    spec = model.inputs[0]
    array = np.resize(np.array([np.nan, np.inf, -np.inf], dtype=np.float32), spec.concrete(3 if spec.dynamic else 1))
    given = replace(model.givens()[0], array=array, binary=True)
    answer = target.infer(model, [given], parameters={"binary_data_output": True})
    found = outputs_of(answer)[model.outputs[0].name].array
    answer.must(same(found, array), f"output of {show(array)}", show(found))


@check("binary.large", level=Level.EXTENSION, source="Triton's L0_large_payload", extension=EXTENSION)
def large(target: Target) -> None:
    """Five megabytes of FP32, more than a picture of 640x640, go in and come back."""
    model = target.identity(Datatype.FP32, dynamic=2)
    if len(model.inputs[0].shape) != 2:
        raise Skip("needs an FP32 identity model of shape [-1, -1]")
    array = np.arange(1280 * 1024, dtype=np.float32).reshape(1280, 1024)
    given = replace(model.givens()[0], array=array, binary=True)
    answer = target.infer(model, [given], parameters={"binary_data_output": True})
    found = outputs_of(replace(answer, sent="5 MiB of FP32 as bytes"))[model.outputs[0].name].array
    answer.must(same(found, array), "the same 5 MiB")


def _same_outputs(answer: Answer, wanted: Mapping[str, Any], *, binary: Mapping[str, bool]) -> None:
    found = outputs_of(answer)
    answer.must(found.keys() == wanted.keys(), f"the outputs {sorted(wanted)}", f"{sorted(found)}")
    for name, output in wanted.items():
        form = "bytes" if binary[name] else "JSON"
        answer.must(found[name].binary == binary[name], f"output {name!r} as {form}")
        answer.must(same(found[name].array, output.array), f"output {name!r} of {show(output.array)}")
    if not any(binary.values()):
        answer.must(HEAD_LENGTH not in answer.headers, f"no header {HEAD_LENGTH}: nothing is binary")


def _split(target: Target) -> tuple[dict[str, Any], bytes]:
    """JSON and bytes of a right request whose inputs are all binary."""
    if target.model.inputs[0].datatype is Datatype.BYTES:
        raise Skip("needs a model with numbers")
    body, headers = build(target.model.givens(binary=True))
    cut = int(headers[HEAD_LENGTH])
    return json.loads(body[:cut]), body[cut:]


def _resized(head: dict[str, Any], size: object) -> None:
    """Change what the last input declares; `size` is of the whole, so the others' share is taken off."""
    *others, last = head["inputs"]
    if isinstance(size, int) and size >= 0:
        size -= sum(entry["parameters"]["binary_data_size"] for entry in others)
    last["parameters"]["binary_data_size"] = size


def _post_parts(target: Target, head: dict[str, Any], blob: bytes) -> Answer:
    encoded = json.dumps(head).encode()
    return _post(target, encoded + blob, len(encoded))


def _post(target: Target, body: bytes, length: object) -> Answer:
    return target.http.post(f"{model_path(target.model.name)}/infer", body=body, headers={HEAD_LENGTH: str(length)})
