"""What `edgeserve serve` serves: a bare model file, or the variant of a release that fits this machine."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_GOLDEN_BYTES
from edgeserve.contracts.names import model_name
from edgeserve.golden import Golden, reproduce
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.variant import find_runtime, load_variant
from edgeserve_agent.serving.dataplane import Identity
from edgeserve_agent.serving.opened import Opened, opened_variant

if TYPE_CHECKING:
    from edgeserve.release.layout import Release, Variant

_LOG: Final = logging.getLogger(__name__)
_RUNTIMES: Final = {".onnx": "onnxruntime", ".xml": "openvino", ".null.json": "null"}
_GOLDEN: Final = "golden.npz"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Standalone:
    """A model that was opened for serving without a fleet."""

    identity: Identity
    opened: Opened


def open_standalone(path: Path, *, name: str, threads: int, scratch: Path) -> Standalone:
    """Open a model file or a release.

    Args:
        path: A model file, or a release: a directory or `.tar`.
        name: To serve it under; empty = the file's stem, or the release's name.
        threads: Inside one call; 0 = the runtime decides.
        scratch: Empty folder that the variant of a release is unpacked to; it must live as long as the model.

    Raises:
        NotFoundError: There is nothing at `path`.
        InputError: It is neither a model nor a release, or `name` is no name.
        TrustError: The release is damaged.
        DeviceError: No variant fits this machine, or it computes something else here than its golden set says.
    """
    if not path.exists():
        raise NotFoundError(f"there is nothing at {path}", hint="name a model file, a release folder or its .tar")
    if path.is_dir() or path.suffix == ".tar":
        return _open_release(path, name=name, threads=threads, scratch=scratch)
    return _open_file(path, name=name, threads=threads)


def _open_file(path: Path, *, name: str, threads: int) -> Standalone:
    suffix = next((known for known in _RUNTIMES if path.name.endswith(known)), None)
    if suffix is None:
        raise InputError(f"{path} is not a kind of model that can be served", hint=f"known are {', '.join(_RUNTIMES)}")
    _LOG.warning("%s is unverified: a bare file has no golden set that says what it should answer", path)
    model = find_runtime(_RUNTIMES[suffix]).load(path, RuntimeOptions(threads=threads))
    digest = _digest(path)
    identity = Identity(
        model=model_name(name) if name else _name_of(path, suffix), version="1", release=digest, variant=digest
    )
    return Standalone(identity=identity, opened=Opened(model=model, runtime=_RUNTIMES[suffix]))


def _name_of(path: Path, suffix: str) -> str:
    stem = path.name.removesuffix(suffix)
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:64].rstrip("._-")
    if not name:
        raise InputError(f"{path.name!r} does not make a model name", hint="give one with --name")
    return name


def _digest(path: Path) -> str:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
    return f"sha256:{hashed.hexdigest()}"


def _open_release(path: Path, *, name: str, threads: int, scratch: Path) -> Standalone:
    from edgeserve.release.layout import verify_release

    release = verify_release(path)
    variant = _choose(release)
    release.unpack(variant, scratch)
    contract, model = load_variant(scratch, simulate=False, threads=threads)
    if _GOLDEN in release.evidence:
        golden = Golden.load(release.read_evidence(_GOLDEN, limit=MAX_GOLDEN_BYTES))
        result = reproduce(model, golden, contract.tolerance, contract.task)
        _LOG.info("golden set reproduced: %d rows, %.1f %% agree", result.rows, 100 * result.agreement)
    else:
        _LOG.warning("%s is unverified: the release has no golden set that says what it should answer", path)
    identity = Identity(
        model=model_name(name) if name else release.identity.name,
        version=release.identity.version,
        release=release.digest,
        variant=variant.digest,
    )
    return Standalone(identity=identity, opened=opened_variant(contract, model))


def _choose(release: Release) -> Variant:
    from edgeserve_devices.match import choose
    from edgeserve_devices.probe import probe

    choice = choose([variant.contract for variant in release.variants], probe())
    for reason in choice.reasons:
        _LOG.info("%s", reason)
    if choice.index is None:
        raise DeviceError(
            f"no variant of {release.identity.name} {release.identity.version} fits this machine: "
            + "; ".join(choice.reasons),
            hint="compile it for this machine with --target",
        )
    return release.variants[choice.index]
