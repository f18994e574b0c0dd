"""What a device builds of a variant before it serves it (`Finalize`: engines, blobs), in a child process, and keeps.

Engines lie in `engines/` of the state directory, by runtime, and the secret that seals them in `engines.key` beside it
(`edgeserve.runtimes.engine_cache`). A candidate's is built in its trial. What has to be built anew (another driver,
another JetPack, a cache that was tampered with) is built before the model is loaded, and never in a request.

Imported by the control part, which has no numpy.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import DeviceError, EdgeServeError
from edgeserve.contracts.limits import FINALIZE_TIMEOUT_S, MAX_CONFIG_BYTES, TRIAL_TIMEOUT_S
from edgeserve.contracts.variant import VariantContract
from edgeserve.release.blobs import open_regular
from edgeserve.release.documents import CONTRACT_FILE
from edgeserve.runtimes.engine_cache import EngineCache
from edgeserve.runtimes.model_files import digest_files, model_files
from edgeserve_agent.sandbox import TRIAL_COMMAND, TrialError, run_trial

FOLDER: Final = "engines"
_log = logging.getLogger("edgeserve.agent")


def cache_folder(state_dir: Path) -> Path:
    """Where a device keeps what it builds."""
    return state_dir / FOLDER


def time_limit_s(contract: VariantContract) -> float:
    """How long a trial of a variant may take, and what is built for it with that."""
    return TRIAL_TIMEOUT_S + (FINALIZE_TIMEOUT_S if contract.finalize is not None else 0.0)


def expectation(contract: VariantContract) -> str:
    """How long building was seen to take, for people; empty = not known."""
    seconds = contract.finalize.seconds if contract.finalize is not None else 0.0
    return f" of about {seconds:.0f} s" if seconds else ""


def contract_in(folder: Path) -> VariantContract:
    """Read the contract of an unpacked variant.

    Raises:
        EdgeServeError: There is none, or it is not valid.
    """
    with open_regular(folder / CONTRACT_FILE) as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    return decode(data, VariantContract, what=str(folder / CONTRACT_FILE), limit=MAX_CONFIG_BYTES)


def finalize(
    folder: Path,
    *,
    cache: Path,
    simulate: bool,
    threads: int,
    stop: threading.Event,
    progress: Callable[[str], None] = lambda _text: None,
    command: tuple[str, ...] = TRIAL_COMMAND,
) -> None:
    """Build what is not built yet of a variant that was tried before, in a child process.

    Args:
        folder: Holds the variant.
        cache: Keeps it.
        simulate: The device is simulated: nothing is built.
        threads: Inside one call.
        stop: Ends it when it is set.
        progress: Told how far it is.
        command: Program of the child process.

    Raises:
        DeviceError: It cannot be built here now, though it could when it was tried: no fault of the release.
        StoppedError: `stop` was set.
    """
    contract = contract_in(folder)
    if contract.finalize is None or simulate:
        return
    try:
        run_trial(
            folder,
            None,
            simulate=False,
            threads=threads,
            stop=stop,
            timeout_s=time_limit_s(contract),
            cache=cache,
            progress=progress,
            command=command,
        )
    except TrialError as error:
        raise DeviceError(f"building what {contract.entry} needs here: {error.message}", hint=error.hint) from error


def collect(state_dir: Path, folders: Iterable[Path]) -> None:
    """Drop what was built of models that are not installed any more.

    Args:
        state_dir: Of the device.
        folders: Variants that stay.

    Raises:
        DeviceError: Something could not be removed.
    """
    cache = cache_folder(state_dir)
    if not cache.is_dir() or cache.is_symlink():
        return
    try:
        models = {digest_files(model_files(folder / contract_in(folder).entry)) for folder in folders}
    except (EdgeServeError, OSError) as error:
        # Better too much on the disk than an engine too few.
        _log.warning("what was built is kept, since a variant cannot be read: %s", error)
        return
    for runtime in sorted(cache.iterdir()):
        if runtime.is_dir() and not runtime.is_symlink():
            EngineCache(runtime, secret=cache.with_name(f"{cache.name}.key")).evict(models)
