"""`POST /v2/models/M/feedback`: the true labels of recent requests, by request id."""

from __future__ import annotations

from functools import partial

import msgspec

from edgeserve.contracts.errors import ConflictError, InputError, NotFoundError
from edgeserve.contracts.limits import FEEDBACK_RING
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.feedback import Labels, Verdict
from edgeserve_agent.serving.messages import Reply, Request, json_response
from edgeserve_agent.serving.rest.api import Route, post


class Feedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The true label of one request, or one label for each of its rows."""

    id: str
    label: int | str | list[int | str]


class FeedbackBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several at once."""

    feedback: list[Feedback]


class FeedbackApi:
    """Takes feedback for every model of a data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def route(self, parts: list[str]) -> Route | None:
        """Its one path."""
        match parts:
            case ["v2", "models", model, "feedback"]:
                return post(partial(self._feedback, model))
            case _:
                return None

    def _feedback(self, model: str, request: Request, reply: Reply) -> None:
        try:
            fields = msgspec.json.decode(request.body, type=dict[str, msgspec.Raw])
            kind: type[Feedback | FeedbackBatch] = FeedbackBatch if "feedback" in fields else Feedback
            given = msgspec.json.decode(request.body, type=kind)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            shown = '{"id": ..., "label": ...} or {"feedback": [...]}'
            raise InputError(f"not feedback, {shown}: {error}") from error
        items = [given] if isinstance(given, Feedback) else given.feedback
        if len(items) > FEEDBACK_RING:
            raise InputError(f"{len(items)} pieces of feedback at once, at most {FEEDBACK_RING} are allowed")
        pairs: list[tuple[str, Labels]] = [(item.id, item.label) for item in items]
        verdicts = [judgement.verdict for judgement in self._plane.feedback(model, pairs)]
        if isinstance(given, Feedback):
            if verdicts[0] is Verdict.UNKNOWN:
                raise NotFoundError(f"no recent request has the id {given.id[:80]!r}")
            if verdicts[0] is Verdict.DUPLICATE:
                raise ConflictError(f"the request {given.id[:80]!r} has its feedback already")
        reply(json_response(200, {verdict.value: verdicts.count(verdict) for verdict in Verdict}))
