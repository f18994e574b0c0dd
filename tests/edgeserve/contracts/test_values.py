"""Values that cannot be invalid: each refusal of a contract, and what its small functions promise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.contracts import errors
from edgeserve.contracts.desired import NEVER, Desired, Generation, Halt, ModelTarget
from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.limits import MAX_BLOB_BYTES, MAX_MODELS_PER_DEVICE, MAX_RELEASE_BLOBS, MAX_TENSOR_RANK
from edgeserve.contracts.oci import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    RELEASE_TYPE,
    Descriptor,
    Index,
    Manifest,
    Platform,
    ReleaseIdentity,
    identity_of,
)
from edgeserve.contracts.reported import DeploymentState, Fence
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec, datatype_of
from edgeserve.contracts.variant import Tolerance

UNTIMED = settings(deadline=None, max_examples=40)

DIGEST = "sha256:" + "a" * 64


def target(**changes: object) -> ModelTarget:
    fields = {"model": "m", "release": DIGEST, "version": "1", "counter": 1, "index_size": 5}
    return ModelTarget(**{**fields, **changes})  # type: ignore[arg-type]


def desired(**changes: object) -> Desired:
    fields = {
        "id": "1", "issuer": "m", "device": "default.pi", "gen": Generation(0, 1), "issued_at": 0.0, "expires_at": 1.0,
        "registry": "http://127.0.0.1:1", "models": (target(),),
    }  # fmt: skip
    return Desired(**{**fields, **changes})  # type: ignore[arg-type]


def blob(**changes: object) -> Descriptor:
    return Descriptor(**{"media_type": MANIFEST_TYPE, "digest": DIGEST, "size": 1, **changes})  # type: ignore[arg-type]


def spec(**changes: object) -> TensorSpec:
    return TensorSpec(**{"name": "x", "datatype": Datatype.FP32, "shape": (1,), **changes})  # type: ignore[arg-type]


REFUSED: dict[str, Callable[[], object]] = {
    "target-model": lambda: target(model="../m"),
    "target-digest": lambda: target(release="latest"),
    "target-version": lambda: target(version="<b>"),
    "target-previous": lambda: target(previous="v1"),
    "target-index-empty": lambda: target(index_size=0),
    "target-index-large": lambda: target(index_size=10 << 30),
    "target-probation-negative": lambda: target(probation_s=-1),
    "target-probation-year": lambda: target(probation_s=365 * 86400),
    "desired-device": lambda: desired(device="default.+"),
    "desired-model-twice": lambda: desired(models=(target(), target(version="2"))),
    "desired-models": lambda: desired(models=tuple(target(model=f"m{n}") for n in range(MAX_MODELS_PER_DEVICE + 1))),
    "desired-registry": lambda: desired(registry="file:///etc"),
    "generation": lambda: desired(gen=Generation(-1, 0)),
    "halt-digest": lambda: Halt(id="1", issuer="m", term=1, version=1, releases=("all",)),
    "blob-negative": lambda: blob(size=-1),
    "blob-large": lambda: blob(size=MAX_BLOB_BYTES + 1),
    "blob-digest": lambda: blob(digest="sha256:../x"),
    "manifest-many": lambda: Manifest(
        schema_version=2, media_type=MANIFEST_TYPE, config=blob(), layers=(blob(),) * (MAX_RELEASE_BLOBS + 1)
    ),
    "manifest-type": lambda: Manifest(schema_version=2, media_type=INDEX_TYPE, config=blob(), layers=()),
    "index-schema": lambda: Index(schema_version=1, media_type=INDEX_TYPE, manifests=()),
    "index-many": lambda: Index(schema_version=2, media_type=INDEX_TYPE, manifests=(blob(),) * (MAX_RELEASE_BLOBS + 1)),
    "identity-counter": lambda: ReleaseIdentity(name="m", version="1", counter=1 << 63),
    "tensor-name": lambda: spec(name=""),
    "tensor-long-name": lambda: spec(name="x" * 257),
    "tensor-rank": lambda: spec(shape=(1,) * (MAX_TENSOR_RANK + 1)),
    "tensor-dimension": lambda: spec(shape=(-2,)),
    "signature-empty": lambda: Signature(inputs=(), outputs=(spec(),)),
    "signature-no-output": lambda: Signature(inputs=(spec(),), outputs=()),
    "signature-twice": lambda: Signature(inputs=(spec(), spec()), outputs=(spec(),)),
    "tolerance-negative": lambda: Tolerance(rtol=-0.1),
    "tolerance-coin": lambda: Tolerance(agreement=0.5),
    "tolerance-above": lambda: Tolerance(agreement=1.1),
    "task-kind": lambda: Task(kind="mind-reading"),
    "task-metric": lambda: Task(metric="vibes"),
    "datatype": lambda: datatype_of("complex64"),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_a_value_that_would_be_invalid_cannot_be_made(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()


def test_what_the_refusals_vary_is_itself_valid() -> None:
    assert desired().models == (target(),)
    assert Signature(inputs=(spec(),), outputs=(spec(),)).inputs[0] == spec()
    assert blob(size=MAX_BLOB_BYTES).size == 8 << 30


# Desired ------------------------------------------------------------------------------------------------

GENERATIONS = st.builds(Generation, st.integers(0, 5), st.integers(0, 5))


@UNTIMED
@given(GENERATIONS, GENERATIONS)
def test_a_higher_term_wins_over_any_number(one: Generation, other: Generation) -> None:
    assert (one < other) == ((one.term, one.n) < (other.term, other.n))
    assert one >= NEVER


# Reported -----------------------------------------------------------------------------------------------

FENCES = st.builds(Fence, install_id=st.sampled_from("ab"), epoch=st.integers(0, 3), seq=st.integers(0, 3))


@UNTIMED
@given(FENCES, FENCES)
def test_of_two_reports_of_one_installation_at_most_one_follows(one: Fence, other: Fence) -> None:
    assert one.follows(None)
    if one.install_id != other.install_id:
        assert one.follows(other)
        assert other.follows(one)
    else:
        assert [one.follows(other), other.follows(one), one == other].count(True) == 1


def test_a_deployment_ends_in_one_of_four_states() -> None:
    ends = {state.value for state in DeploymentState if state.is_terminal}
    assert ends == {"committed", "reverted", "revert-failed", "rejected"}


# OCI ----------------------------------------------------------------------------------------------------


@UNTIMED
@given(
    name=st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True),
    version=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    counter=st.integers(0, (1 << 63) - 1),
)
def test_an_identity_is_read_back_from_its_annotations(name: str, version: str, counter: int) -> None:
    identity = ReleaseIdentity(name=name, version=version, counter=counter)
    index = Index(
        schema_version=2, media_type=INDEX_TYPE, artifact_type=RELEASE_TYPE, manifests=(),
        annotations=identity.annotations(),
    )  # fmt: skip
    assert identity_of(index) == identity


def test_a_platform_always_names_its_system() -> None:
    """image-spec 1.1, "Image Index": `architecture` and `os` are REQUIRED."""
    from edgeserve.contracts.documents import encode

    assert encode(Platform(architecture="arm64", os="linux")) == b'{"architecture":"arm64","os":"linux"}'


# Tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", Datatype)
def test_datatypes_are_numpys_and_back(datatype: Datatype) -> None:
    import numpy as np

    # numpy has no bfloat16: its arrays hold the bits, and are those of UINT16 on the way back.
    assert datatype_of(datatype.numpy_name) is (Datatype.UINT16 if datatype is Datatype.BF16 else datatype)
    dtype = np.dtype(datatype.numpy_name)
    assert datatype.item_bytes == (0 if datatype is Datatype.BYTES else dtype.itemsize)


SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@UNTIMED
@given(shape=SHAPES, free=st.sets(st.integers(0, 3)), other=SHAPES)
def test_a_shape_fits_where_each_fixed_dimension_is_equal(shape, free, other) -> None:
    declared = tuple(-1 if axis in free else size for axis, size in enumerate(shape))
    tensor = spec(shape=declared)
    assert tensor.accepts(shape)
    fits = len(other) == len(declared) and all(want in (-1, have) for want, have in zip(declared, other, strict=True))
    assert tensor.accepts(other) == fits


@pytest.mark.parametrize(
    ("tolerance", "element_wise"),
    [(Tolerance(), False), (Tolerance(atol=0.1), True), (Tolerance(rtol=0.1), True), (Tolerance(agreement=0.9), False)],
)
def test_outputs_are_compared_number_by_number_where_a_closeness_is_given(
    tolerance: Tolerance, element_wise: bool
) -> None:
    assert tolerance.element_wise is element_wise


# Errors -------------------------------------------------------------------------------------------------


def test_every_error_has_the_exit_code_of_who_must_act() -> None:
    codes = {kind.__name__: kind.exit_code for kind in vars(errors).values() if is_error(kind)}
    assert codes == {
        "EdgeServeError": 1, "InputError": 2, "NotFoundError": 2, "ConflictError": 2, "TrustError": 3,
        "AccuracyError": 4, "TransientError": 1, "DeviceError": 1, "MissingLibraryError": 1, "TooLargeError": 2,
        "UnsupportedError": 2, "RejectedError": 1, "RequestCancelledError": 1,
    }  # fmt: skip


def is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, EdgeServeError)
