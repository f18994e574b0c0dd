"""A runtime that loads models of another runtime, each in a worker process of its own."""

from __future__ import annotations

from pathlib import Path

from edgeserve.runtimes.base import RuntimeOptions
from edgeserve_agent.isolation.forkserver import ForkServer, shared_fork_server
from edgeserve_agent.isolation.lifecycle import RestartPolicy
from edgeserve_agent.isolation.messages import LoadOrder
from edgeserve_agent.isolation.model import IsolatedModel
from edgeserve_agent.isolation.options import IsolationOptions, require_support
from edgeserve_agent.isolation.source import ModelFiles


class IsolatedRuntime:
    """Implements `edgeserve.runtimes.base.Runtime`; the library behind it is never imported in this process.

    Args:
        inner_name: Of the runtime, as registered in the entry-point group `edgeserve.runtimes`.
        isolation: Calls at once, limits.
        folder: Has nothing but what belongs to the model that will be loaded; see `ModelFiles`.
        server: Forks the workers; the process's own one without it.
        policy: When a worker that crashed is followed by another.
    """

    def __init__(
        self,
        inner_name: str,
        *,
        isolation: IsolationOptions | None = None,
        folder: Path | None = None,
        server: ForkServer | None = None,
        policy: RestartPolicy | None = None,
    ) -> None:
        self.name = inner_name
        self._isolation = isolation or IsolationOptions()
        self._folder = folder
        self._server = server
        self._policy = policy

    def version(self) -> str:
        """Version of the library behind it, which the fork server imports for it: later loads are quicker.

        Raises:
            NotFoundError: No such runtime.
            DeviceError: Its library is not installed, or this system cannot isolate.
        """
        return self._forks().warm(self.name)

    def load(self, path: Path, options: RuntimeOptions) -> IsolatedModel:
        """Load a model in a process of its own; see `edgeserve.runtimes.base.Runtime.load`.

        Raises:
            InputError, DeviceError: As there, with the message and hint of the runtime.
            DeviceError: The process crashed while loading, or this system cannot isolate.
        """
        order = LoadOrder(runtime=self.name, path=str(path.absolute()), options=options, isolation=self._isolation)
        forks = self._forks()
        return IsolatedModel(forks, order, ModelFiles(Path(order.path), self._folder), self._policy)

    def _forks(self) -> ForkServer:
        require_support()
        return self._server or shared_fork_server()
