from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeserve import npz
from edgeserve.contracts.errors import InputError

LIMIT = 1 << 20
NUMBERS = st.one_of(arrays.boolean_dtypes(), arrays.integer_dtypes(), arrays.floating_dtypes())


def saved(**content: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    return buffer.getvalue()


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def claiming(shape: str) -> bytes:
    """An npy whose header says `shape` and whose data are eight bytes."""
    return npy(np.zeros(1)).replace(b"(1,), }" + b" " * (len(shape) - 4), f"{shape}, }}".encode())


@given(array=arrays.arrays(dtype=NUMBERS, shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)))
@settings(max_examples=60, deadline=None)
def test_what_numpy_writes_comes_back_equal_native_and_writable(array: np.ndarray) -> None:
    for data in (saved(a=array), npz.dump({"a": array}), saved(a=np.asfortranarray(array))):
        back = npz.load(data, what="file", limit=LIMIT)["a"]
        np.testing.assert_array_equal(back, array)
        assert back.dtype == array.dtype.newbyteorder("=")
        assert back.flags.writeable
        assert back.flags.c_contiguous


TEXT = [np.array(["down/1.wav", "größe", ""]), np.array([b"a", b"bc"]), np.array([["a"]], ">U3")]


@pytest.mark.parametrize("array", TEXT, ids=["text", "bytes", "byte order"])
def test_text_comes_back_when_it_is_asked_for(array: np.ndarray) -> None:
    back = npz.load(saved(a=array), what="file", limit=LIMIT, text=True)["a"]
    np.testing.assert_array_equal(back, array)
    with pytest.raises(InputError, match="not a plain number"):
        npz.load(saved(a=array), what="file", limit=LIMIT)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(1, "S5000"), "text of 5000 bytes"),
        (np.zeros(1, "U1100"), "text of 4400 bytes"),
        (np.array([0x110000], np.uint32).view("U1"), "not Unicode"),
        (np.array([0xD800], np.uint32).view("U1"), "not Unicode"),
        (np.array(["2026-01-01"], "M8[D]"), "not a plain number"),
    ],
)
def test_text_that_is_none_or_too_long_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        npz.load(saved(a=array), what="file", limit=LIMIT, text=True)


def test_the_same_arrays_give_the_same_bytes_that_numpy_can_read() -> None:
    content = {"in.x": np.arange(6, dtype=np.float32).reshape(2, 3), "out.y": np.array([1, 2])}
    first, second = npz.dump(content), npz.dump({name: array.copy() for name, array in content.items()})
    assert first == second
    read = np.load(io.BytesIO(first))
    assert {name: read[name].tolist() for name in read} == {name: array.tolist() for name, array in content.items()}


class Bomb:
    def __reduce__(self):
        return (Path("/nonexistent/pickle-was-run").touch, ())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an npz"),
        (b"hello", "not an npz"),
        (saved(a=np.arange(1000.0))[:-40], "not an npz"),
        (zipped({"a.npy": npy(np.array([{"a": 1}], object), allow_pickle=True)}), "pickle"),
        (zipped({"a.npy": pickle.dumps(Bomb())}), "not an array"),
        (zipped({"a.txt": b"hi"}), "not an array"),
        (zipped({"a.npy": npy(np.array(["text"]))}), "not a plain number"),
        (zipped({"a.npy": npy(np.zeros(3, "f4,i4"))}), "not a plain number"),
        (zipped({"a.npy": claiming("(1000000000000,)")}), "truncated"),
        (zipped({"a.npy": npy(np.zeros(3))[:-8]}), "truncated"),
        (zipped({"a.npy": npy(np.zeros(3)) + b"more"}), "another length"),
        (zipped({"a.npy": npy(np.zeros(3))}, zipfile.ZIP_LZMA), "unknown method"),
        (zipped({"a.npy": npy(np.zeros(LIMIT))}), "unpacks to"),
        (bytes(LIMIT + 1), "at most"),
        (zipped({f"{number}.npy": b"" for number in range(1025)}), "1025 arrays"),
        (zipped({"a.npy": npy(np.zeros((1,) * 17))}), "shape"),
    ],
    ids=[
        "empty", "text", "cut", "object array", "pickle", "other file", "strings", "struct", "claims a terabyte",
        "short array", "long array", "lzma", "bomb", "too long", "too many", "rank",
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_trusted_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        npz.load(data, what="golden set", limit=LIMIT)
    assert "golden set" in raised.value.message


def test_every_flipped_byte_is_noticed_or_harmless() -> None:
    good = npz.dump({"a": np.arange(8, dtype=np.int32)})
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 0xFF
        try:
            arrays_read = npz.load(bytes(bad), what="file", limit=LIMIT)
        except InputError:
            continue
        for array in arrays_read.values():
            np.testing.assert_array_equal(array, np.arange(8))


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read data\.npz"):
        npz.load(tmp_path / "data.npz", what="data.npz", limit=LIMIT)
