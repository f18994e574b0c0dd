"""What `edgeserve serve` serves: a bare model file, or the variant of a release that fits this machine."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_GOLDEN_BYTES
from edgeserve.contracts.model_config import ModelConfig
from edgeserve.contracts.names import model_name
from edgeserve.release.blobs import digest_file
from edgeserve.release.blobs import digest_of as blob_digest
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.variant import load_variant
from edgeserve_agent.serving.model_source import FoundModel, FoundVersion, OpenOptions
from edgeserve_agent.serving.opened import Opened, configured, opened_variant, runtime_finder, threads_of
from edgeserve_agent.serving.served import Identity

if TYPE_CHECKING:
    from edgeserve.release.layout import Release, Variant

_LOG: Final = logging.getLogger(__name__)
HANDLER: Final = "handler.toml"
"""The whole name of its file; a model that it is chained to lies beside it."""
VARIANTS: Final = "variants"
"""Folder in the scratch folder that variants of releases are unpacked into."""
RUNTIMES: Final = {
    ".onnx": "onnxruntime",
    ".xml": "openvino",
    ".tflite": "litert",
    ".null.json": "null",
    HANDLER: "python",
}
"""End of a model file's name -> the runtime that loads it."""
_GOLDEN: Final = "golden.npz"


@dataclass(frozen=True, kw_only=True)
class Standalone:
    """A model that was opened for serving without a fleet."""

    identity: Identity
    opened: Opened


def open_standalone(
    path: Path, *, name: str, threads: int, scratch: Path, config: ModelConfig | None = None
) -> Standalone:
    """Open a model file or a release.

    Args:
        path: A model file, or a release: a directory or `.tar`.
        name: To serve it under; empty = the file's stem, or the release's name.
        threads: Inside one call; 0 = the runtime decides.
        scratch: Folder, there or not, that variants of releases are unpacked into; it must live as long as the model.
        config: How it is served.

    Raises:
        NotFoundError: There is nothing at `path`.
        InputError: It is neither a model nor a release, or `name` is no name.
        TrustError: The release is damaged.
        DeviceError: No variant fits this machine, or it computes something else here than its golden set says.
    """
    source = SingleModel(path, name=name, options=OpenOptions(threads=threads, scratch=scratch), config=config)
    found = source.find(source.name).versions[-1]
    opened = found.open()
    return Standalone(identity=replace(found.identity, variant=opened.variant or found.identity.variant), opened=opened)


class SingleModel:
    """`ModelSource` of the one model of `edgeserve serve MODEL`.

    Args:
        path: A model file, or a release: a directory or `.tar`.
        name: To serve it under; empty = the file's stem, or the release's name.
        options: What the server was told.
        config: How it is served.
        folder: Where files lie that the configuration names.

    Raises:
        NotFoundError, InputError, TrustError: As `open_standalone`.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        options: OpenOptions,
        config: ModelConfig | None = None,
        folder: Path | None = None,
    ) -> None:
        if not os.path.exists(path):  # noqa: PTH110 - `Path.exists` raises where it may not look
            raise NotFoundError(f"there is nothing at {path}", hint="name a model file, a release folder or its .tar")
        self._path = path
        self._options = options
        self._config = config or ModelConfig()
        self._folder = folder
        self._is_release = path.is_dir() or path.suffix == ".tar"
        if self._is_release:
            self.name = model_name(name) if name else _release(path).identity.name
        else:
            suffix = suffix_of(path)
            self.name = model_name(name) if name else _name_of(path, suffix)
        check_name(self._config, self.name, "the configuration")

    def names(self) -> list[str]:
        """The one."""
        return [self.name]

    def find(self, name: str, *, config: ModelConfig | None = None) -> FoundModel:
        """Look at the model; see `ModelSource.find`."""
        if name != self.name:
            raise NotFoundError(f"there is no model {name[:80]!r}", hint=f"this server has {self.name}")
        fingerprint = self.fingerprint(name)
        config = self._config if config is None else config
        if self._is_release:
            release = _release(self._path)
            identity = Identity(
                model=name,
                version=release.identity.version,
                release=release.digest,
                variant=release.digest,
                counter=release.identity.counter,
            )
            opener = partial(
                open_release_variant, self._path, options=self._options, config=config, folder=self._folder
            )
        else:
            digest = digest_of([self._path])
            identity = Identity(model=name, version="1", release=digest, variant=digest)
            opener = partial(
                open_model_file, self._path, threads=self._options.threads, config=config, folder=self._folder
            )
        version = FoundVersion(identity=identity, open=opener)
        return FoundModel(name=name, config=config, versions=(version,), fingerprint=fingerprint)

    def fingerprint(self, name: str) -> str:
        """By size and time of the file, or of the release's index."""
        try:
            status = (self._path / "index.json" if self._path.is_dir() else self._path).stat()
        except OSError:
            return ""
        return f"{status.st_size} {status.st_mtime_ns}" if name == self.name else ""


def check_name(config: ModelConfig, name: str, what: str) -> None:
    """Make sure that a configuration is of the model that it lies with.

    Raises:
        InputError: It names another.
    """
    if config.name not in ("", name):
        raise InputError(f"{what} is of model {config.name[:80]!r}, not {name!r}", hint="correct name, or leave it out")


def suffix_of(path: Path) -> str:
    """The end of a file's name that says the kind of model.

    Raises:
        InputError: No kind of model that is known.
    """
    suffix = next((known for known in RUNTIMES if path.name.endswith(known)), None)
    if suffix is None:
        raise InputError(f"{path} is not a kind of model that can be served", hint=f"known are {', '.join(RUNTIMES)}")
    return suffix


def open_model_file(
    path: Path, *, threads: int, config: ModelConfig, folder: Path | None, version: Path | None = None
) -> Opened:
    """Load a bare model.

    Args:
        path: The file; the end of its name says the runtime, unless the configuration does.
        threads: Inside one call, unless the configuration says another number; 0 = the runtime decides.
        config: How it is served.
        folder: Where files lie that the configuration names.
        version: Folder that has nothing but the model's files; None = there is none such.

    Raises:
        InputError: It is no model, or the configuration does not fit it.
        DeviceError: This machine cannot run it.
    """
    runtime = config.runtime or RUNTIMES[suffix_of(path)]
    _LOG.warning("%s is unverified: a bare file has no golden set that says what it should answer", path)
    loaded = runtime_finder(config, threads=threads, folder=version)(runtime).load(
        path, RuntimeOptions(threads=threads_of(config, threads))
    )
    return configured(Opened(model=loaded, runtime=runtime), config, folder=folder)


def _name_of(path: Path, suffix: str) -> str:
    stem = path.name.removesuffix(suffix) or path.resolve().parent.name
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:64].rstrip("._-")
    if not name:
        raise InputError(f"{path.name!r} does not make a model name", hint="give one with --name")
    return name


def digest_of(paths: list[Path], *, salt: str = "") -> str:
    """Digest of files: of the bytes of one, of names and bytes where there are several or a `salt`.

    Raises:
        NotFoundError: One is gone.
        InputError: One is not a regular file.
        DeviceError: One cannot be read.
    """
    digests = [digest_file(path)[0] for path in paths]
    if len(digests) == 1 and not salt:
        return digests[0]
    listed = [f"{path.name}\0{digest}" for path, digest in zip(paths, digests, strict=True)]
    return blob_digest("\0".join([salt, *listed]).encode("utf-8", "surrogateescape"))


def _release(path: Path) -> Release:
    from edgeserve.release.layout import open_release

    return open_release(path)


def open_release_variant(path: Path, *, options: OpenOptions, config: ModelConfig, folder: Path | None) -> Opened:
    """Verify a release, load the variant that fits this machine and hold it to the release's golden set.

    Args:
        path: Of the release.
        options: What the server was told.
        config: How it is served.
        folder: Where files lie that the configuration names.

    Raises:
        InputError: It is no release, or the configuration does not fit the model.
        TrustError: It is damaged.
        DeviceError: No variant fits this machine, or it computes something else here than its golden set says.
    """
    from edgeserve.release.layout import verify_release

    release = verify_release(path)
    variant = _choose(release)
    unpacked = options.scratch / VARIANTS / variant.digest.removeprefix("sha256:")
    unpacked.parent.mkdir(parents=True, exist_ok=True)
    release.unpack(variant, unpacked)
    contract, model = load_variant(
        unpacked,
        simulate=False,
        threads=threads_of(config, options.threads),
        find=runtime_finder(config, threads=options.threads, folder=unpacked),
        cache=options.cache,
    )
    try:
        if _GOLDEN in release.evidence:
            from edgeserve.golden import Golden, reproduce

            golden = Golden.load(release.read_evidence(_GOLDEN, limit=MAX_GOLDEN_BYTES))
            result = reproduce(model, golden, contract.tolerance, contract.task)
            _LOG.info("golden set reproduced: %d rows, %.1f %% agree", result.rows, 100 * result.agreement)
        else:
            _LOG.warning("%s is unverified: the release has no golden set that says what it should answer", path)
    except BaseException:
        model.close()
        raise
    opened = opened_variant(contract, model, config, folder=folder)
    return replace(opened, variant=variant.digest)


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
