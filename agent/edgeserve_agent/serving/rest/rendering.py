"""Answers of one form and the same shapes: all that is the same in each of them is rendered once."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgeserve.client.blobs import encode_numbers
from edgeserve.runtimes.base import Tensor
from edgeserve_agent.serving.codec.answer import write_region
from edgeserve_agent.serving.codec.wishes import Form, Wish
from edgeserve_agent.serving.messages import JSON, OCTETS, RenderedResponse
from edgeserve_agent.serving.regions import Regions
from edgeserve_agent.serving.served import Identity

_encode = msgspec.json.encode


class Rendering:
    """Makes the answers to requests with one plan (`Plan.form` is not None) whose outputs have the same shapes.

    Args:
        identity: Of the release that answers.
        wishes: What the requests want back: numbers, all binary, all JSON or all in shared memory.
        arrays: The outputs of one of them, in that order.
        regions: Shared memory.
    """

    def __init__(
        self,
        identity: Identity,
        wishes: Sequence[Wish],
        arrays: Sequence[Tensor],
        regions: Regions | None = None,
    ) -> None:
        self._form = wishes[0].form
        self._wishes = wishes
        self._regions = regions
        content_type = OCTETS if self._form is Form.BINARY else JSON
        self._head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nedgeserve-release: %s\r\n" % (
            content_type, identity.release.encode(),
        )  # fmt: skip
        model, version = _encode(identity.model), _encode(identity.version)
        self._opening = b'{"model_name":%s,"model_version":%s' % (model, version)
        described: list[dict[str, object]] = [
            {"name": wish.spec.name, "datatype": wish.spec.datatype.value, "shape": array.shape}
            for wish, array in zip(wishes, arrays, strict=True)
        ]
        self._blob_bytes = 0
        if self._form is not Form.JSON:
            if self._form is Form.BINARY:
                self._blob_bytes = sum(array.nbytes for array in arrays)
                for one, array in zip(described, arrays, strict=True):
                    one["parameters"] = {"binary_data_size": array.nbytes}
            # Those in shared memory have no parameters, as Triton: its C++ client takes them for a binary tensor's.
            self._pieces = [b',"outputs":%s}' % _encode(described)]
            self._whole = self._prefix("")
            return
        starts = [b'%s,"data":' % _encode(one)[:-1] for one in described]
        self._pieces = [b',"outputs":[' + starts[0], *(b"}," + start for start in starts[1:]), b"}]}"]

    def response(self, request_id: str, arrays: Sequence[Tensor]) -> RenderedResponse:
        """The answer to one request.

        Raises:
            InputError: The region of an output is gone, or too small for it.
        """
        if self._form is not Form.JSON:
            prefix = self._prefix(request_id) if request_id else self._whole
            if self._form is Form.REGION:
                for wish, array in zip(self._wishes, arrays, strict=True):
                    write_region(wish, array, self._regions)
                return RenderedResponse(prefix, ())
            chunks = [encode_numbers(arrays[0])] if len(arrays) == 1 else [encode_numbers(array) for array in arrays]
            return RenderedResponse(prefix, chunks)
        parts = [self._opening]
        if request_id:
            parts.append(b',"id":%s' % _encode(request_id))
        for piece, array in zip(self._pieces, arrays):  # noqa: B905 - one piece is the end
            parts.append(piece)
            parts.append(_encode(array.ravel().tolist()))
        parts.append(self._pieces[-1])
        json = b"".join(parts)
        return RenderedResponse(b"%sContent-Length: %d\r\n\r\n%s" % (self._head, len(json), json), ())

    def _prefix(self, request_id: str) -> bytes:
        identity = b',"id":%s' % _encode(request_id) if request_id else b""
        json = b"%s%s%s" % (self._opening, identity, self._pieces[0])
        if self._form is Form.REGION:
            return b"%sContent-Length: %d\r\n\r\n%s" % (self._head, len(json), json)
        return b"%sContent-Length: %d\r\nInference-Header-Content-Length: %d\r\n\r\n%s" % (
            self._head, len(json) + self._blob_bytes, len(json), json,
        )  # fmt: skip
