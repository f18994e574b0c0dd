"""What the web page shows: strings and small tables made from the fleet's views; the templates only place them."""

from __future__ import annotations

import time
from typing import Any, Final

from edgeserve.contracts.limits import SEEN_LATELY_S
from edgeserve_fleet.service import Fleet
from edgeserve_fleet.views import DeviceView, ModelView, ReleaseView, RolloutView, StatsView

_SHOWN_ROLLOUTS: Final = 12
_SHOWN_VERDICTS: Final = 6
_DAY_S: Final = 86_400.0
_STATE_KINDS: Final = {
    "committed": "good",
    "succeeded": "good",
    "pass": "good",
    "running": "warn",
    "inconclusive": "warn",
    "paused": "warn",
    "rejected": "bad",
    "reverted": "bad",
    "revert-failed": "bad",
    "rolling-back": "bad",
    "rolled-back": "bad",
    "aborted": "bad",
    "fail": "bad",
}
"""How a state is coloured; the others are plain."""


def content(fleet: Fleet, status: object, now: float) -> dict[str, Any]:
    """The variables of the template `fleet.html`.

    Args:
        fleet: Asked for devices, releases and its latest rollouts.
        status: The manager's own status.
        now: Unix seconds, for ages.
    """
    newest = sorted(fleet.rollouts(), key=lambda view: view.created_at, reverse=True)[:_SHOWN_ROLLOUTS]
    return {
        "status": status,
        "devices": [device_row(view, now) for view in fleet.devices()],
        "rollouts": [rollout_row(fleet.rollout(view.rollout), now) for view in newest],
        "releases": [release_row(view, now) for view in fleet.releases()],
    }


def device_row(view: DeviceView, now: float) -> dict[str, Any]:
    """One device."""
    if view.revoked:
        presence, kind = "revoked", "bad"
    elif view.online:
        presence, kind = "online", "good"
    elif view.last_seen > now - SEEN_LATELY_S:
        presence, kind = "seen lately", ""  # it polls, or left a moment ago
    else:
        presence, kind = ("offline" if view.last_seen else "never seen"), "warn"
    stats = {(row.model, row.release): row for row in view.stats}
    return {
        "device": view.device,
        "labels": sorted(view.labels.items()),
        "profile": view.profile,
        "simulated": view.facts is not None and view.facts.simulated,
        "insecure": view.insecure,
        "presence": presence,
        "presence_kind": kind,
        "error": view.error,
        "models": [_model_row(model, stats.get((model.model, model.active))) for model in view.models],
        "seen": now - view.last_seen if view.last_seen else None,
    }


def rollout_row(view: RolloutView, now: float) -> dict[str, Any]:
    """One rollout with its waves and latest verdicts."""
    return {
        "id": view.rollout,
        "model": view.model,
        "version": view.version,
        "state": view.state,
        "phase": view.phase,
        "kind": _STATE_KINDS.get(view.state, ""),
        "created": now - view.created_at,
        "reason": "" if _is_said(view) else view.reason,
        # A wave that would add no device is left out when the rollout starts.
        "waves": [_wave_row(view, number) for number in range(1, len(view.waves or view.spec.waves) + 1)],
        "counts": [f"{count} {state}" for state, count in view.counts.items() if count],
        "verdicts": [
            {
                "wave": judged.wave,
                "outcome": judged.verdict.outcome.value,
                "kind": _STATE_KINDS.get(judged.verdict.outcome.value, ""),
                "reasons": judged.verdict.reasons,
                "when": "would be" if judged is view.now else _clock(judged.at, now),
            }
            for judged in [
                *([view.now] if view.now is not None else []),
                *view.verdicts[: -_SHOWN_VERDICTS - 1 : -1],
            ]
        ],
    }


def release_row(view: ReleaseView, now: float) -> dict[str, Any]:
    """One release."""
    return {
        "name": f"{view.name}:{view.version}",
        "digest": view.digest,
        "halted": view.halted,
        "variants": [f"{variant.get('target')} {variant.get('precision')}" for variant in view.variants],
        "added": now - view.added_at,
    }


def _model_row(model: ModelView, stats: StatsView | None) -> dict[str, Any]:
    counted = stats is not None and stats.feedback > 0
    return {
        "name": model.model,
        "version": model.version,
        "wanted": model.desired_version if model.desired != model.active else "",
        "state": model.state,
        "kind": _STATE_KINDS.get(model.state, ""),
        "reason": model.reason,
        "executing_device": model.executing_device,
        "target": model.target,
        "precision": model.precision,
        "accuracy": stats.correct / stats.feedback if counted and stats is not None else None,
        "feedback": stats.feedback if stats is not None else 0,
    }


def _wave_row(view: RolloutView, number: int) -> dict[str, Any]:
    """One wave; before the rollout starts it has the size that the operator wrote."""
    wave = next((wave for wave in view.waves if wave.wave == number), None)
    if wave is None:
        asked = view.spec.waves[number - 1]
        size = _devices(asked.count) if asked.count else f"{asked.percent:g} % of the devices"
    else:
        size = _devices(wave.size)
    if number > 1 and "%" not in size:
        size += " in all"
    if wave is None or not wave.started_at:
        return {"number": number, "size": size, "text": "not begun", "kind": ""}
    text, kind = ("passed", "good") if wave.passed_at else (view.phase or view.state, _STATE_KINDS.get(view.state, ""))
    return {"number": number, "size": size, "text": text, "kind": kind}


def _is_said(view: RolloutView) -> bool:
    """Whether the reason is that of the latest verdict, which is shown anyway."""
    return bool(view.verdicts) and view.reason.endswith("; ".join(view.verdicts[-1].verdict.reasons))


def _devices(count: int) -> str:
    return f"{count} device{'' if count == 1 else 's'}"


def _clock(moment: float, now: float) -> str:
    """Time of day in UTC, with the date when it is more than a day ago."""
    return time.strftime("%H:%M:%S" if now - moment < _DAY_S else "%Y-%m-%d %H:%M", time.gmtime(moment))
