"""Area `compression`: request and answer bodies in gzip and deflate (RFC 1950, 1952)."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from typing import Final

import numpy as np

from edgeserve.conformance.check import Level, Violation, check
from edgeserve.conformance.checks.binary import EXTENSION
from edgeserve.conformance.http import Answer
from edgeserve.conformance.infer import outputs_of
from edgeserve.conformance.target import Target
from edgeserve.contracts.tensors import Datatype

_SOURCE: Final = "Triton's L0_data_compression; tritonclient's request_compression_algorithm"
_GZIP: Final = {"Content-Encoding": "gzip"}


@check("compression.request-gzip", level=Level.SHOULD, source=_SOURCE)
def request_gzip(target: Target) -> None:
    """A request in gzip is read."""
    outputs_of(target.infer(target.model, headers=_GZIP, encode=gzip.compress))


@check("compression.request-deflate", level=Level.SHOULD, source=_SOURCE)
def request_deflate(target: Target) -> None:
    """A request in deflate (the zlib format) is read."""
    outputs_of(target.infer(target.model, headers={"Content-Encoding": "deflate"}, encode=zlib.compress))


@check("compression.request-identity", level=Level.SHOULD, source="RFC 9110, 8.4: identity")
def request_identity(target: Target) -> None:
    """A request with Content-Encoding: identity is read as it is."""
    outputs_of(target.infer(target.model, headers={"Content-Encoding": "identity"}))


@check("compression.request-binary", level=Level.SHOULD, source=_SOURCE, extension=EXTENSION)
def request_binary(target: Target) -> None:
    """In a compressed request the header length counts the JSON before compression."""
    model = target.model
    outputs_of(target.infer(model, model.givens(binary=True), headers=_GZIP, encode=gzip.compress))


@check("compression.response", level=Level.SHOULD, source=_SOURCE)
def response(target: Target) -> None:
    """A compressed answer, where one is asked for, names its encoding and decodes to the answer."""
    for asked in ("gzip", "deflate"):
        answer = target.infer(target.model, headers={"Accept-Encoding": asked}).ok()
        outputs_of(_decoded(answer))


@check("compression.response-gzip", level=Level.SHOULD, source="tritonclient's response_compression_algorithm")
def response_gzip(target: Target) -> None:
    """An answer of some size is compressed with gzip when that is asked for."""
    model = target.identity(Datatype.FP32, dynamic=1)
    given = model.givens()[0]
    shape = [
        4096 if size == -1 and axis == len(model.inputs[0].shape) - 1 else abs(size)
        for axis, size in enumerate(model.inputs[0].shape)
    ]
    answer = target.infer(
        model, [replace(given, array=np.zeros(shape, dtype=np.float32))], headers={"Accept-Encoding": "gzip"}
    ).ok()
    answer.must(answer.headers.get("content-encoding") == "gzip", "content-encoding: gzip", f"{dict(answer.headers)}")


@check(
    "compression.response-unasked", level=Level.MUST, source="RFC 9110, 12.5.3; tritonclient.http.aio does not decode"
)
def response_unasked(target: Target) -> None:
    """An answer is not compressed when nobody asked."""
    answer = target.infer(target.model).ok()
    encoding = answer.headers.get("content-encoding", "identity")
    answer.must(encoding == "identity", "no content-encoding", encoding)


@check("compression.broken", level=Level.MUST, source=_SOURCE)
def broken(target: Target) -> None:
    """A gzip body that ends too early is not answered 200, and the server goes on."""
    answer = target.infer(target.model, headers=_GZIP, encode=lambda body: gzip.compress(body)[:-12])
    answer.must(400 <= answer.status < 600, "an error status")
    target.still_answers("broken gzip")


@check("compression.broken-4xx", level=Level.SHOULD, source="tritonclient reads every error as JSON")
def broken_4xx(target: Target) -> None:
    """A body that is not what its Content-Encoding says is called the client's mistake, in JSON."""
    target.infer(target.model, headers=_GZIP).refused(most=499)


@check("compression.unknown", level=Level.SHOULD, source="RFC 9110, 15.5.16")
def unknown(target: Target) -> None:
    """A Content-Encoding that the server does not know is refused, in JSON."""
    target.infer(target.model, headers={"Content-Encoding": "rot13"}).refused()


@check("compression.bomb", level=Level.MUST, source="Triton's L0_http: http_input_size_limit, decompressed size")
def bomb(target: Target) -> None:
    """A hundred megabytes of spaces in a hundred kilobytes of gzip do not end the server."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [compressor.compress(b" " * (1 << 20)) for _ in range(100)]
    body = b"".join((*parts, compressor.flush()))
    target.infer(target.model, headers=_GZIP, encode=lambda _: body)
    target.still_answers("a gzip bomb")


def _decoded(answer: Answer) -> Answer:
    encoding = answer.headers.get("content-encoding", "identity")
    answer.must(encoding in ("identity", "gzip", "deflate"), "content-encoding gzip or deflate", encoding)
    try:
        if encoding == "gzip":
            return replace(answer, body=gzip.decompress(answer.body))
        return answer if encoding == "identity" else replace(answer, body=zlib.decompress(answer.body))
    except (OSError, EOFError, zlib.error) as error:
        raise Violation(sent=answer.sent, expected=f"a body in {encoding}", got=str(error)) from error
