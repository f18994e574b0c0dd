"""Every document that comes from outside: what is good survives the round trip, what is not is an InputError."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.contracts.desired import Desired, Generation, Halt, ModelTarget
from edgeserve.contracts.device import Accelerator, DeviceFacts
from edgeserve.contracts.documents import decode, encode
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.oci import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    ImageLayout,
    Index,
    LayoutIndex,
    Manifest,
    Platform,
)
from edgeserve.contracts.reported import Ack, DeploymentState, Event, Fence, ModelReport, Presence, Reported
from edgeserve.contracts.rollout import RolloutSpec, Wave
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Measured, Precision, Selector, Tolerance, VariantContract

UNTIMED = settings(deadline=None, max_examples=40)

LIMIT = 1 << 20
DIGEST = "sha256:" + "a" * 64
FENCE = Fence(install_id="i", epoch=1, seq=2)
BLOB = Descriptor(media_type=MANIFEST_TYPE, digest=DIGEST, size=3, platform=Platform(architecture="arm64", os="linux"))
SPEC = TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 3))
MEASURED = Measured(
    metric="top1", rows=5, float_value=0.9, value=0.9, drop=0.0, drop_low=-0.1, drop_high=0.1, latency_ms=1.0,
    float_latency_ms=1.0, size_bytes=1, float_size_bytes=1, host="cpu", executing_device="CPU",
)  # fmt: skip
DOCUMENTS: list[msgspec.Struct] = [
    Desired(
        id="1", issuer="m", device="default.pi", gen=Generation(1, 2), issued_at=1.0, expires_at=2.0, registry="http://r",
        models=(ModelTarget(model="m", release=DIGEST, version="1", counter=1, index_size=5),),
    ),
    Halt(id="1", issuer="m", term=1, version=1, releases=(DIGEST,)),
    Reported(
        device="default.pi", fence=FENCE, agent="0.1.0", models=(ModelReport(model="m", active=DIGEST),),
        facts=DeviceFacts(architecture="arm64", accelerators=(Accelerator(kind="npu", vendor="intel"),)),
    ),
    Event(device="default.pi", fence=FENCE, model="m", release=DIGEST, rollout="", state=DeploymentState.COMMITTED),
    Presence(on=True, epoch=1),
    Ack(device="default.pi", install_id="i", epoch=1, seq=2),
    Index(schema_version=2, media_type=INDEX_TYPE, manifests=(BLOB,), annotations={"a": "b"}),
    LayoutIndex(schema_version=2, manifests=(BLOB,)),
    ImageLayout(image_layout_version="1.0.0"),
    Manifest(schema_version=2, media_type=MANIFEST_TYPE, config=BLOB, layers=(BLOB,)),
    RolloutSpec(model="m", release=DIGEST, waves=(Wave(count=1), Wave(percent=100))),
    VariantContract(
        model="m", target="null", precision=Precision.INT8, runtime="null", entry="m.json",
        signature=Signature(inputs=(SPEC,), outputs=(SPEC,)), task=Task(labels=("a", "b")), selector=Selector(),
        tolerance=Tolerance(), measured=MEASURED,
    ),
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=4,
)


def kind_of(document: msgspec.Struct) -> str:
    return type(document).__name__


@pytest.mark.parametrize("document", DOCUMENTS, ids=kind_of)
def test_a_document_survives_the_round_trip(document: msgspec.Struct) -> None:
    assert decode(encode(document), type(document), what="it", limit=LIMIT) == document


@pytest.mark.parametrize("document", DOCUMENTS, ids=kind_of)
def test_unknown_fields_are_ignored(document: msgspec.Struct) -> None:
    fields = {**json.loads(encode(document)), "from_the_future": {"deep": [1, 2]}}
    assert decode(json.dumps(fields).encode(), type(document), what="it", limit=LIMIT) == document


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    here: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        here.append((value, key))
        here.extend(places(value[key]))
    return here


@pytest.mark.parametrize("document", DOCUMENTS, ids=kind_of)
@UNTIMED
@given(data=st.data(), value=JSON)
def test_a_document_with_any_one_value_replaced_is_read_or_refused(
    document: msgspec.Struct, data: st.DataObject, value: object
) -> None:
    fields = json.loads(encode(document))
    container, key = data.draw(st.sampled_from(places(fields)))
    container[key] = value
    try:
        read = decode(json.dumps(fields).encode(), type(document), what="it", limit=LIMIT)
    except InputError:
        return
    assert decode(encode(read), type(document), what="it", limit=LIMIT) == read


@pytest.mark.parametrize("document", DOCUMENTS, ids=kind_of)
@UNTIMED
@given(data=st.data())
def test_a_document_with_any_one_byte_replaced_is_read_or_refused(
    document: msgspec.Struct, data: st.DataObject
) -> None:
    encoded = bytearray(encode(document))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(encoded), type(document), what="it", limit=LIMIT)
    except InputError:
        return


@pytest.mark.parametrize("kind", [type(document) for document in DOCUMENTS])
@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{", b"NaN", b"\xff\xfe", b'{"id":"\x80"}', b"[" * 200_000, b'{"x":' * 200_000],
    ids=["empty", "null", "list", "cut", "nan", "bom", "no-utf8", "deep-list", "deep-object"],
)
def test_what_is_no_document_is_refused(kind: type[msgspec.Struct], data: bytes) -> None:
    with pytest.raises(InputError, match="it is not valid"):
        decode(data, kind, what="it", limit=1 << 21)


def test_the_limit_counts_bytes() -> None:
    data = encode(Presence(on=True, epoch=1))
    decode(data, Presence, what="presence", limit=len(data))
    with pytest.raises(InputError, match=f"presence has {len(data)} bytes, at most {len(data) - 1}"):
        decode(data, Presence, what="presence", limit=len(data) - 1)


def test_the_hint_of_a_refused_field_is_kept() -> None:
    contract = json.loads(encode(DOCUMENTS[-1]))
    with pytest.raises(InputError) as caught:
        decode(json.dumps({**contract, "schema": 9}).encode(), VariantContract, what="contract", limit=LIMIT)
    assert caught.value.hint == "update edgeserve"


def test_encoding_does_not_depend_on_the_order_of_keys() -> None:
    assert encode({"b": 1, "a": {"d": 1, "c": 2}}) == encode({"a": {"c": 2, "d": 1}, "b": 1})


@pytest.mark.parametrize("document", DOCUMENTS, ids=kind_of)
def test_a_document_cannot_be_changed(document: msgspec.Struct) -> None:
    field = type(document).__struct_fields__[0]
    with pytest.raises(AttributeError):
        setattr(document, field, None)
