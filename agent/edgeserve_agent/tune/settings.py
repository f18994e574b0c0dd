"""A configuration as the model's settings, and those as TOML. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from edgeserve.contracts.model_config import DynamicBatching, InstanceGroup, ModelConfig
from edgeserve_agent.tune.space import Configuration

_DECIDED: Final = ("runtime", "threads", "instance_group", "max_batch_size", "dynamic_batching")
"""Fields that tuning decides, written first; all others stay as they were."""
_ALWAYS: Final = {(InstanceGroup, "count")}
"""Written even where it is what nobody would have to say: for the reader."""


def model_config(configuration: Configuration, base: ModelConfig) -> ModelConfig:
    """`base`, served by `configuration`.

    Args:
        configuration: What was found.
        base: What was said before: labels, warm-up, priorities and the like stay.
    """
    batching = None
    if configuration.batch:
        batching = msgspec.structs.replace(
            base.dynamic_batching or DynamicBatching(),
            preferred_batch_size=(configuration.preferred,) if configuration.preferred else (),
            max_queue_delay_microseconds=configuration.delay_us,
        )
    group = base.instance_group[0] if len(base.instance_group) == 1 else InstanceGroup()
    return msgspec.structs.replace(
        base,
        runtime=configuration.runtime or base.runtime,
        threads=configuration.threads,
        instance_group=(msgspec.structs.replace(group, count=configuration.instances),),
        max_batch_size=configuration.batch or base.max_batch_size,
        dynamic_batching=batching,
    )


def toml(config: ModelConfig, comments: Sequence[str] = ()) -> str:
    """A configuration as TOML, without what is as it would be anyway.

    Args:
        config: What to write.
        comments: Lines above it.
    """
    plain = _without_defaults(config)
    first = [name for name in _DECIDED if name in plain]
    lines = [f"# {line}".rstrip() for line in comments]
    lines += [
        f"{_key(name)} = {_value(plain[name])}" for name in (*first, *(name for name in plain if name not in first))
    ]
    return "\n".join(lines) + "\n"


def _without_defaults(struct: msgspec.Struct) -> dict[str, Any]:
    """The fields that were set, by the names that files have for them."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        if field.required or value != _default(field) or (type(struct), field.name) in _ALWAYS:
            found[field.encode_name] = _plain(value)
    return found


def _default(field: msgspec.structs.FieldInfo) -> Any:  # noqa: ANN401 - of any type
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _plain(value: Any) -> Any:  # noqa: ANN401 - of any type
    if isinstance(value, msgspec.Struct):
        return _without_defaults(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return msgspec.to_builtins(value)


def _value(value: Any) -> str:  # noqa: ANN401 - of any type
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    return repr(value)


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else _text(name)


def _text(value: str) -> str:
    # JSON's escapes are TOML's, save that JSON leaves DEL as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
