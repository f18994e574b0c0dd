from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeserve.client.blobs import decode_blob, encode_blob
from edgeserve.client.inference import FeedbackResult, InferenceClient
from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError, NotFoundError, TransientError
from edgeserve.contracts.tensors import Datatype, datatype_of

RELEASE = "sha256:" + "7" * 64


TENSOR = np.frombuffer(b"0000", np.float32)


@contextlib.contextmanager
def answering(response: bytes) -> Iterator[InferenceClient]:
    """A client of a server that answers one request that ends in TENSOR, with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                while not connection.recv(65536).endswith(TENSOR.tobytes()):
                    pass
                connection.sendall(response)

        thread = threading.Thread(target=answer)
        thread.start()
        client = InferenceClient(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=5.0)
        yield client
        thread.join()
        client.close()


@pytest.fixture
def client(server_url: str):
    made = InferenceClient(server_url)
    yield made
    made.close()


def test_an_answer_has_outputs_names_and_release(client: InferenceClient):
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    result = client.infer("sums", {"x": rows}, request_id="r1")
    assert list(result.outputs) == ["y", "z"]
    assert result.outputs["y"].tolist() == [[6.0] * 3, [22.0] * 3]
    assert result.outputs["z"].dtype == np.int64
    assert (result.model_name, result.model_version, result.request_id, result.release) == (
        "sums",
        "1.0",
        "r1",
        RELEASE,
    )


def test_only_the_outputs_asked_for_come(client: InferenceClient):
    result = client.infer("sums", {"x": np.zeros((1, 4), np.float32)}, outputs=["z"], version="1.0")
    assert list(result.outputs) == ["z"]


def test_arrays_need_not_be_contiguous_or_of_this_byte_order(client: InferenceClient):
    rows = np.arange(8, dtype=">f4").reshape(4, 2).T
    assert client.infer("sums", {"x": rows}).outputs["y"][:, 0].tolist() == rows.sum(axis=1).tolist()


@pytest.mark.parametrize(
    "texts",
    [np.array(["a", "bc"]), np.array([b"a", b"bc"]), np.array(["a", b"bc"], object)],
    ids=["str", "bytes", "mixed"],
)
def test_texts_are_sent_as_bytes(client: InferenceClient, texts):
    assert client.infer("texts", {"t": texts}).outputs["u"].tolist() == [b"", b""]


def test_half_floats_go_both_ways(client: InferenceClient):
    assert client.infer("halves", {"h": np.ones((2, 2), np.float16)}).outputs["h"].tolist() == [2.0, 2.0]


def test_feedback_is_counted_and_told(client: InferenceClient):
    for name in ("f1", "f2"):
        client.infer("sums", {"x": np.zeros((1, 4), np.float32)}, request_id=name)
    client.infer("sums", {"x": np.zeros((2, 4), np.float32)}, request_id="f3")
    given_labels = [("f1", 0), ("f2", "b"), ("f2", "b"), ("f3", [0, "c"]), ("never", 1)]
    assert client.feedback("sums", given_labels) == FeedbackResult(counted=3, unknown=1, duplicate=1)


def test_metadata_describes_the_model(client: InferenceClient):
    found = client.metadata("sums")
    assert (found.name, found.platform, found.versions) == ("sums", "null", ("1.0",))
    assert [(spec.name, spec.shape) for spec in found.outputs] == [("y", (-1, 3)), ("z", (-1,))]


@pytest.mark.parametrize(
    ("model", "inputs", "error", "says"),
    [
        ("sums", {"x": np.zeros((1, 5), np.float32)}, InputError, "shape [1, 5]"),
        ("sums", {"x": np.zeros((1, 4), np.float64)}, InputError, "FP64"),
        ("sums", {"w": np.zeros((1, 4), np.float32)}, InputError, "'x' is missing"),
        ("sums", {"x": np.zeros(2, np.complex64)}, InputError, "input 'x'"),
        ("texts", {"t": np.array([1, "a"], object)}, InputError, "bytes or str"),
        ("no such/model?", {"x": np.zeros(1)}, NotFoundError, "unknown model 'no such/model?'"),
        ("late", {"x": np.zeros(1)}, TransientError, "not ready"),
    ],
)
def test_an_error_says_whose_it_is(client: InferenceClient, model, inputs, error: type[EdgeServeError], says: str):
    with pytest.raises(error) as caught:
        client.infer(model, inputs)
    assert says in caught.value.message


def test_a_server_that_is_not_ready_or_not_there_is_told_apart_from_one_that_is(client: InferenceClient):
    assert not client.ready()  # a model of it is still to come
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        alone = InferenceClient(f"http://127.0.0.1:{nobody.getsockname()[1]}", timeout_s=2.0)
        assert not alone.ready()
        with pytest.raises(TransientError, match=r"no answer from http://127\.0\.0\.1:\d+: \[Errno"):
            alone.metadata("m")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", ""])
def test_what_is_not_a_url_is_refused(url: str):
    with pytest.raises(InputError, match="is not the URL"):
        InferenceClient(url)


@pytest.mark.parametrize(
    ("response", "error", "says"),
    [
        pytest.param(b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno", DeviceError, "answered 500", id="500 plain"),
        pytest.param(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n", TransientError, "answered 502", id="502"),
        pytest.param(b"HTTP/1.1 302 No\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", DeviceError, "302", id="redirect"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", TransientError, "Open Inference", id="empty"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 109\r\nContent-Length: 111\r\n\r\n"
            b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[1],'
            b'"parameters":{"binary_data_size":4}}]}ab',
            TransientError,
            "Open Inference",
            id="short blob",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", TransientError, "no answer", id="cut off"),
        pytest.param(b"", TransientError, "no answer", id="closed"),
    ],
)
def test_a_strange_answer_is_an_error_of_its_kind(response: bytes, error: type[EdgeServeError], says: str):
    with answering(response) as client, pytest.raises(error) as caught:
        client.infer("m", {"x": TENSOR})
    assert says in caught.value.message


def test_json_outputs_of_another_server_are_read():
    body = (
        b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[[1.5,null]]},'
        b'{"name":"t","datatype":"BYTES","shape":[1],"data":["a"]}]}'
    )
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as client:
        result = client.infer("m", {"x": TENSOR})
    np.testing.assert_array_equal(result.outputs["y"], np.array([[1.5, np.nan]], np.float32))
    assert result.outputs["t"].tolist() == [b"a"]
    assert (result.model_version, result.release) == ("", "")


SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ARRAYS = st.one_of(
    st.sampled_from([kind for kind in Datatype if kind is not Datatype.BYTES]).flatmap(
        lambda kind: hnp.arrays(np.dtype(kind.numpy_name), SHAPES)
    ),
    hnp.arrays(np.dtype(object), SHAPES, elements=st.binary(max_size=9)),
)


@given(ARRAYS, st.booleans(), st.integers(0, 7))
def test_a_tensor_is_the_same_after_the_wire(array, transposed: bool, offset: int):
    sent = array.T if transposed else array
    blob = b"x" * offset + bytes(encode_blob(datatype_of(sent.dtype.name), sent))
    found = decode_blob("x", datatype_of(sent.dtype.name), sent.shape, memoryview(blob)[offset:])
    np.testing.assert_array_equal(found, sent, strict=True)
    assert found.flags.aligned
