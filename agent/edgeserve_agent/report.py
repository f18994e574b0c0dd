"""The reported document: what the journal, the slots and the serving process say, put together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from edgeserve import __version__
from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_CONFIG_BYTES
from edgeserve.contracts.reported import ModelReport, Reported
from edgeserve.contracts.variant import VariantContract
from edgeserve.release.documents import CONTRACT_FILE
from edgeserve_agent.config import AgentConfig
from edgeserve_agent.control import ServingStatus
from edgeserve_agent.journal import Entry, Journal
from edgeserve_agent.slots import ModelSlots, Slot, Slots

_MOST_REASON_CHARS: Final = 1000
_MOST_QUARANTINED: Final = 32


class Reporter:
    """Builds reports.

    Args:
        config: Of the device.
        facts: Of the device.
    """

    def __init__(self, config: AgentConfig, facts: DeviceFacts) -> None:
        self._config = config
        self._facts = facts
        self._contracts: dict[str, VariantContract] = {}

    def build(
        self,
        journal: Journal,
        slots: Slots,
        status: ServingStatus | None,
        *,
        free_bytes: int,
        error: str,
        progress: Mapping[str, str] = MappingProxyType({}),
    ) -> Reported:
        """Put a report together.

        Args:
            journal: Its fence becomes the report's.
            slots: What `slots.json` says.
            status: What the serving process says; None while it does not answer: then nothing is reported as active.
            free_bytes: Of the file system.
            error: Last problem that is no deployment's.
            progress: By model: how far a long step of its deployment is.
        """
        names = sorted({one.model for one in slots.models} | {entry.record.model for entry in journal.entries})
        return Reported(
            device=self._config.device.id,
            fence=journal.fence,
            agent=__version__,
            gen_seen=journal.gen_seen,
            desired_seen=journal.desired_digest,
            models=tuple(
                msgspec.structs.replace(
                    self._model(slots.of(name), journal.entry(name), status),
                    progress=progress.get(name, "")[:_MOST_REASON_CHARS],
                )
                for name in names
            ),
            quarantined=journal.quarantined[-_MOST_QUARANTINED:],
            facts=self._facts,
            http_url=status.http_url if status else "",
            insecure=self._config.serving.insecure_dev,
            free_bytes=free_bytes,
            error=error[:_MOST_REASON_CHARS],
        )

    def _model(self, slots: ModelSlots, entry: Entry | None, status: ServingStatus | None) -> ModelReport:
        served = next(
            (one for one in (status.releases if status else ()) if one.active and one.model == slots.model), None
        )
        report = ModelReport(model=slots.model, previous=slots.previous.release if slots.previous else "")
        fields: dict[str, object] = {}
        if served is not None:
            fields.update(
                active=served.release,
                version=served.version,
                variant=served.variant,
                executing_device=served.executing_device,
                fallback=served.fallback[:_MOST_REASON_CHARS],
            )
            contract = self._contract(
                Slot(release=served.release, version=served.version, variant=served.variant).folder(self._config.folder)
            )
            if contract is not None:
                fields.update(target=contract.target, precision=contract.precision.value)
        if entry is not None:
            record = entry.record
            if served is not None and (record.release, record.variant) == (served.release, served.variant):
                fields.update(latency_ms=record.latency_ms)
            fields.update(
                state=record.state,
                release=record.release,
                rollout=record.target.rollout,
                reason=record.reason[:_MOST_REASON_CHARS],
            )
        return msgspec.structs.replace(report, **fields)

    def _contract(self, folder: Path) -> VariantContract | None:
        if folder.name not in self._contracts:
            try:
                data = (folder / CONTRACT_FILE).read_bytes()
                contract = decode(data, VariantContract, what=str(folder), limit=MAX_CONFIG_BYTES)
            except (OSError, InputError):
                return None
            self._contracts[folder.name] = contract
        return self._contracts[folder.name]
