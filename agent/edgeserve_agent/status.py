"""What a state directory and the serving process say, for people and scripts on the device."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeserve.contracts.errors import EdgeServeError, NotFoundError
from edgeserve_agent import slots
from edgeserve_agent.config import AgentConfig
from edgeserve_agent.control import ServingStatus, Status, call
from edgeserve_agent.journal import read_journal
from edgeserve_agent.slots import Slot


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model."""

    model: str
    active: str
    """Version that answers; what `slots.json` names when no server is there to ask."""
    executing_device: str
    fallback: str
    """Why that is not the device asked for; empty = it is."""
    previous: str
    state: str
    version: str
    """Version of the latest deployment."""
    reason: str


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One device."""

    device: str
    state_dir: str
    gen_seen: str
    http_url: str
    """Empty = no serving process answers."""
    insecure: bool
    models: tuple[ModelStatus, ...]
    quarantined: tuple[str, ...]
    unacknowledged_events: int


def read_status(config: AgentConfig) -> AgentStatus:
    """Read the state directory, changing nothing, and ask the serving process.

    Raises:
        NotFoundError: There is no such directory.
        DeviceError: `slots.json` or the journal is damaged.
    """
    folder = config.folder
    if not Path(folder).is_dir():
        raise NotFoundError(f"there is no state directory {folder}", hint="name it with --state-dir or --config")
    known = slots.read(folder)
    journal = read_journal(folder)
    serving = _ask(config)
    names = sorted(
        {one.model for one in known.models} | {one.record.model for one in (journal.entries if journal else ())}
    )
    models = []
    for name in names:
        entry = journal.entry(name) if journal else None
        served = next((one for one in (serving.releases if serving else ()) if one.active and one.model == name), None)
        model = known.of(name)
        models.append(
            ModelStatus(
                model=name,
                active=served.version if served else _version(model.active),
                executing_device=served.executing_device if served else "",
                fallback=served.fallback if served else "",
                previous=_version(model.previous),
                state=entry.record.state.value if entry else "",
                version=entry.record.target.version if entry else "",
                reason=entry.record.reason if entry else "",
            )
        )
    return AgentStatus(
        device=config.device.id,
        state_dir=str(folder),
        gen_seen=str(journal.gen_seen) if journal else "0.0",
        http_url=serving.http_url if serving else "",
        insecure=config.serving.insecure_dev,
        models=tuple(models),
        quarantined=journal.quarantined if journal else (),
        unacknowledged_events=len(journal.events) if journal else 0,
    )


def _ask(config: AgentConfig) -> ServingStatus | None:
    try:
        return call(config.socket_path, Status(), ServingStatus, timeout_s=2.0)
    except EdgeServeError:
        return None


def _version(slot: Slot | None) -> str:
    return slot.version if slot else ""
