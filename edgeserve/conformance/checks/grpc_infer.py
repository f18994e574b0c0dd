"""Area `grpc-infer`: ModelInfer and ModelStreamInfer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

import numpy as np

from edgeserve.conformance.check import Body, Level, Skip, Violation, add, check
from edgeserve.conformance.grpc_client import Failure, outputs_of, request, shown
from edgeserve.conformance.infer import Given, Got, same, show
from edgeserve.conformance.target import NO_JSON, Model, Target, samples
from edgeserve.contracts.tensors import Datatype

_SOURCE: Final = "OIP gRPC, ModelInfer"
_TENSOR: Final = "OIP gRPC, Tensor Data"


def infer(target: Target, model: Model, givens: Sequence[Given] | None = None, **options: Any) -> dict[str, Got]:  # noqa: ANN401
    """Run a model and read its outputs."""
    message = request(model.name, model.givens() if givens is None else givens, **options)
    return outputs_of(target.grpc.call("ModelInfer", message), sent=shown("ModelInfer", message))


@check("grpc-infer.raw", level=Level.MUST, source=f"{_TENSOR}: raw_input_contents")
def raw(target: Target) -> None:
    """Raw inputs are answered as HTTP answers the same inputs."""
    _as_http(target, infer(target, target.model))


@check("grpc-infer.typed", level=Level.MUST, source=f"{_TENSOR}: contents")
def typed(target: Target) -> None:
    """Typed contents are answered as HTTP answers the same inputs."""
    _as_http(target, infer(target, target.model, typed=True))


@check(
    "grpc-infer.raw-output", level=Level.SHOULD, source="tritonclient.grpc reads numbers from raw_output_contents only"
)
def raw_output(target: Target) -> None:
    """Outputs come as raw_output_contents, whatever the inputs were."""
    for as_typed in (False, True):
        for name, output in infer(target, target.model, typed=as_typed).items():
            _must(
                output.binary, f"raw_output_contents for {name!r} ({'typed' if as_typed else 'raw'} inputs)", "contents"
            )


@check("grpc-infer.names", level=Level.MUST, source=_SOURCE)
def names(target: Target) -> None:
    """The response names the model that was asked, and a version that it has."""
    response = target.grpc.call("ModelInfer", request(target.model.name, target.model.givens()))
    _must(response.model_name == target.model.name, f"model_name {target.model.name!r}", repr(response.model_name))
    versions = target.model.versions
    fits = not response.model_version or not versions or response.model_version in versions
    _must(fits, f"model_version of {list(versions)}", repr(response.model_version))


@check("grpc-infer.version", level=Level.MUST, source=_SOURCE)
def version(target: Target) -> None:
    """A version that the metadata lists is answered by that version."""
    if not target.model.versions:
        raise Skip(f"the metadata of {target.model.name!r} lists no versions")
    for wanted in target.model.versions:
        response = target.grpc.call("ModelInfer", request(target.model.name, target.model.givens(), version=wanted))
        _must(response.model_version in (wanted, ""), f"model_version {wanted!r}", repr(response.model_version))


@check("grpc-infer.id", level=Level.MUST, source=f"{_SOURCE}: id")
def request_id(target: Target) -> None:
    """The id of the request is the id of the response."""
    for given in ("42", "größe ✓ 🙂", ""):
        response = target.grpc.call("ModelInfer", request(target.model.name, target.model.givens(), request_id=given))
        _must(not given or response.id == given, f"id {given!r}", repr(response.id))


@check("grpc-infer.requested-output", level=Level.MUST, source=f"{_SOURCE}: outputs")
def requested_output(target: Target) -> None:
    """Only the outputs that are requested come, with data of their own."""
    model = target.add_sub()
    whole = infer(target, model)
    for name in ("OUTPUT0", "OUTPUT1"):
        found = infer(target, model, outputs=[name])
        _must(list(found) == [name], f"only {name}", f"{list(found)}")
        _must(same(found[name].array, whole[name].array), show(whole[name].array), show(found[name].array))


@check("grpc-infer.add-sub", level=Level.MUST, source="Triton's L0_grpc: the model `simple`")
def add_sub(target: Target) -> None:
    """The sum and the difference of two inputs come under their own names, raw and typed."""
    model = target.add_sub()
    arrays = {
        "INPUT0": np.arange(16, dtype=np.int32).reshape(1, 16),
        "INPUT1": np.full((1, 16), 3, dtype=np.int32),
    }
    givens = [replace(given, array=arrays[given.name]) for given in reversed(model.givens())]
    for as_typed in (False, True):
        found = infer(target, model, givens, typed=as_typed)
        for name, wanted in (
            ("OUTPUT0", arrays["INPUT0"] + arrays["INPUT1"]),
            ("OUTPUT1", arrays["INPUT0"] - arrays["INPUT1"]),
        ):
            _must(same(found[name].array, wanted), f"{name} {show(wanted)}", show(found[name].array))


def _exact(datatype: Datatype, *, as_typed: bool) -> Body:
    def body(target: Target) -> None:
        model = target.identity(datatype)
        spec = model.inputs[0]
        array = samples(datatype, spec.concrete(4 if spec.dynamic else 1))
        found = infer(target, model, [replace(model.givens()[0], array=array)], typed=as_typed)[model.outputs[0].name]
        _must(found.datatype is datatype, f"datatype {datatype.value}", found.datatype.value)
        _must(same(found.array, array), show(array), show(found.array))

    return body


for _datatype in Datatype:
    for _typed in (False, True):
        if not (_typed and _datatype in NO_JSON):
            _form = "typed" if _typed else "raw"
            add(
                f"grpc-infer.{_form}-{_datatype.value.lower()}",
                title=f"{_datatype.value} data as {_form} contents, with the datatype's extremes, come back exactly",
                level=Level.SHOULD if _datatype is Datatype.BF16 else Level.MUST,
                source=f"{_TENSOR}; Tensor Data Types",
                extension="",
                body=_exact(_datatype, as_typed=_typed),
            )


@check("grpc-infer.zero-size", level=Level.MUST, source="Triton's L0_infer_zero")
def zero_size(target: Target) -> None:
    """A tensor without elements passes, with its (empty) entry in raw contents."""
    model = target.identity(Datatype.FP32, dynamic=1)
    spec = model.inputs[0]
    shape = tuple(0 if size == -1 else size for size in spec.shape)
    found = infer(target, model, [replace(model.givens()[0], array=np.empty(shape, dtype=np.float32))])
    _must(
        found[model.outputs[0].name].shape == shape,
        f"shape {list(shape)}",
        f"{list(found[model.outputs[0].name].shape)}",
    )


@check("grpc-infer.parameters", level=Level.SHOULD, source="tritonclient sends priority as uint64, timeout as int64")
def parameters(target: Target) -> None:
    """Priority, timeout and sequence parameters are accepted in every number field."""
    for given in (
        {"priority": ("uint64", 1), "timeout": ("int64", 10_000_000)},
        {"sequence_id": ("int64", 0), "sequence_start": False, "sequence_end": False},
    ):
        infer(target, target.model, parameters=given)


@check("grpc-infer.compression", level=Level.SHOULD, source="Triton's L0_grpc; gRPC compression")
def compression(target: Target) -> None:
    """A request in gzip or deflate is read."""
    for name in ("gzip", "deflate"):
        message = request(target.model.name, target.model.givens())
        response = target.grpc.call("ModelInfer", message, compression=name)
        outputs_of(response, sent=f"ModelInfer in {name}")


@check("grpc-infer.large", level=Level.SHOULD, source="Triton's L0_large_payload; MLServer#290")
def large(target: Target) -> None:
    """Five megabytes of FP32 go in and come back."""
    model = target.identity(Datatype.FP32, dynamic=1)
    shape = tuple(
        1280 * 1024 if size == -1 and axis == len(model.inputs[0].shape) - 1 else abs(size)
        for axis, size in enumerate(model.inputs[0].shape)
    )
    array = np.arange(1280 * 1024, dtype=np.float32).reshape(shape)
    message = request(model.name, [replace(model.givens()[0], array=array)])
    answer = target.grpc.attempt("ModelInfer", message)
    if isinstance(answer, Failure):
        raise Violation(sent="ModelInfer of 5 MiB", expected="status OK", got=f"{answer.code}: {answer.details[:200]}")
    found = outputs_of(answer, sent="ModelInfer of 5 MiB")[model.outputs[0].name]
    _must(same(found.array, array), "the same 5 MiB", show(found.array))


@check("grpc-infer.concurrent", level=Level.MUST, source=f"{_SOURCE}: id")
def concurrent(target: Target) -> None:
    """Of many requests at once each gets its own response."""
    model, grpc = target.model, target.grpc

    def one(number: int) -> str:
        return str(grpc.call("ModelInfer", request(model.name, model.givens(), request_id=f"r{number}")).id)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(64)))
    _must(found == [f"r{number}" for number in range(64)], "r0 to r63", f"{found[:8]}...")


@check("grpc-infer.stream", level=Level.SHOULD, source="Triton, inference_protocols: ModelStreamInfer")
def stream(target: Target) -> None:
    """Requests on a stream are answered one after another, each with its id."""
    model = target.model
    wanted = [f"s{number}" for number in range(4)]
    responses = _stream(target, [request(model.name, model.givens(), request_id=name) for name in wanted])
    _must(all(not response.error_message for response in responses), "no error_message", str(responses[:1])[:300])
    found = [response.infer_response.id for response in responses]
    _must(sorted(found) == wanted, f"the ids {wanted}", f"{found}")


@check(
    "grpc-infer.stream-error",
    level=Level.SHOULD,
    source="Triton: errors travel in error_message, the stream stays open",
)
def stream_error(target: Target) -> None:
    """A wrong request on a stream gets an error_message, and the next one is answered."""
    model = target.model
    responses = _stream(
        target,
        [request("conformance-no-such-model", model.givens()), request(model.name, model.givens(), request_id="after")],
    )
    messages = [response.error_message for response in responses]
    _must(any(messages), "an error_message", str(messages))
    found = [response.infer_response.id for response in responses if not response.error_message]
    _must(found == ["after"], "the next request answered", f"{found}")


def _stream(target: Target, requests: list[Any]) -> list[Any]:
    try:
        return target.grpc.stream(requests)
    except Violation as violation:
        if violation.got.startswith("UNIMPLEMENTED"):
            raise Skip("the server has no ModelStreamInfer, which is Triton's") from violation
        raise


def _as_http(target: Target, found: dict[str, Got]) -> None:
    wanted = target.outputs(target.model)
    _must(found.keys() == wanted.keys(), f"the outputs {sorted(wanted)}", f"{sorted(found)}")
    for name, output in wanted.items():
        _must(same(found[name].array, output.array), f"{name!r} {show(output.array)}", show(found[name].array))


def _must(condition: object, expected: str, got: str) -> None:
    if not condition:
        raise Violation(sent="ModelInfer", expected=expected, got=got)
