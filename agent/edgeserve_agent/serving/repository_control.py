"""What protocols may ask of the model repository (Triton's "Model Repository" extension)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.model_config import ModelConfig

if TYPE_CHECKING:
    from edgeserve_agent.serving.catalog import State

_CONFIG: Final = "config"
_FILE: Final = "file:"
_DEPENDENTS: Final = "unload_dependents"


class RepositoryControl(Protocol):
    """A repository that clients may load from. Lives on the event loop."""

    def index(self, *, ready_only: bool = False) -> list[State]:
        """Every version that is there, loaded or not."""

    async def load(
        self, model: str, *, config: ModelConfig | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Load a model, or load it anew: what is served changes only when the new one is ready.

        Args:
            model: Its name.
            config: Used instead of the one in the repository.
            files: The model's files by their path, such as `1/model.onnx`, used instead of those in the repository.

        Raises:
            NotFoundError: The repository has no such model.
            EdgeServeError: It cannot be loaded; what was served before is served on.
        """

    async def unload(self, model: str, *, unload_dependents: bool = False) -> None:
        """Unload all versions of a model; requests in flight are still answered.

        Raises:
            NotFoundError: The repository has no such model.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """The parameters of a load, read."""

    config: ModelConfig | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


def load_request(parameters: Mapping[str, Any]) -> LoadRequest:
    """Read the parameters of a load.

    Args:
        parameters: `config`: the configuration as JSON text; `file:PATH`: content of a file as bytes.

    Raises:
        InputError: One is unknown or of the wrong type, the configuration is none, or there are files without one.
    """
    config: ModelConfig | None = None
    files: dict[str, bytes] = {}
    for name, value in parameters.items():
        if name == _CONFIG:
            config = _config(value)
        elif name.startswith(_FILE) and len(name) > len(_FILE):
            if not isinstance(value, bytes):
                raise InputError(f"parameter {name[:80]!r} of a load must hold the bytes of the file")
            files[name.removeprefix(_FILE)] = value
        else:
            raise InputError(f"a load has no parameter {name[:80]!r}", hint="it has config and file:PATH")
    if files and config is None:
        raise InputError("a load with files needs the parameter config, too", hint='the shortest is "{}"')
    return LoadRequest(config=config, files=files)


def check_unload(parameters: Mapping[str, Any]) -> None:
    """Hold the parameters of an unload against what there is; no model here depends on another.

    Raises:
        InputError: One is unknown or of the wrong type.
    """
    for name, value in parameters.items():
        if name != _DEPENDENTS:
            raise InputError(f"an unload has no parameter {name[:80]!r}", hint=f"it has {_DEPENDENTS}")
        if not isinstance(value, bool):
            raise InputError(f"parameter {_DEPENDENTS} is {str(value)[:40]!r}, it must be true or false")


def _config(value: object) -> ModelConfig:
    if not isinstance(value, str):
        raise InputError("parameter config of a load must be a text that holds JSON")
    try:
        # protobuf's JSON writes 64-bit numbers as texts.
        return msgspec.json.decode(value, type=ModelConfig, strict=False)
    except (msgspec.DecodeError, EdgeServeError, RecursionError) as error:
        raise InputError(f"parameter config of a load is no model configuration: {error}") from error
