from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from edgeserve.contracts.errors import InputError, TrustError
from edgeserve.contracts.oci import MANIFEST_TYPE, Descriptor, Manifest, ReleaseIdentity
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import VARIANT_CONFIG_TYPE, Precision, Selector, Tolerance, VariantContract
from edgeserve.release.layout import Variant
from edgeserve.trust.verified import OFFLINE_SIGNATURE, VerifiedRelease

DIGEST = "sha256:" + "0" * 64
SPEC = TensorSpec(name="x", datatype=Datatype.FP32, shape=(1,))
VARIANT = Variant(
    descriptor=Descriptor(media_type=MANIFEST_TYPE, digest=DIGEST, size=1),
    manifest=Manifest(
        schema_version=2, media_type=MANIFEST_TYPE, layers=(),
        config=Descriptor(media_type=VARIANT_CONFIG_TYPE, digest=DIGEST, size=1),
    ),
    contract=VariantContract(
        model="digits", target="null", precision=Precision.FP32, runtime="null", entry="m",
        signature=Signature(inputs=(SPEC,), outputs=(SPEC,)), selector=Selector(), tolerance=Tolerance(),
    ),
)  # fmt: skip


def verified(**changes: Any) -> VerifiedRelease:
    fields: dict[str, Any] = {
        "digest": DIGEST,
        "identity": ReleaseIdentity(name="digits", version="1", counter=1),
        "variant": VARIANT,
        "checks": ("manager signature", "digests"),
    }
    return VerifiedRelease(**{**fields, **changes})


def test_it_says_what_was_checked_and_what_was_not() -> None:
    assert verified().trust == "manager signature, digests; no offline release signature yet"
    assert verified(checks=("digests", OFFLINE_SIGNATURE)).trust == "digests, offline release signature"


@pytest.mark.parametrize("checks", [(), ("",), ("digests", "")], ids=str)
def test_a_release_of_which_nothing_was_checked_is_not_verified(checks: tuple[str, ...]) -> None:
    with pytest.raises(TrustError, match="nothing was checked"):
        verified(checks=checks)


def test_it_names_a_digest_and_cannot_be_changed() -> None:
    with pytest.raises(InputError, match="digest"):
        verified(digest="latest")
    with pytest.raises(FrozenInstanceError):
        verified().digest = DIGEST  # type: ignore[misc]
