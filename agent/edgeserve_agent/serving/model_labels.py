"""Where the labels of model versions stand, kept over restarts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgeserve import atomic
from edgeserve.contracts.documents import decode, encode
from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.limits import MAX_CONFIG_BYTES, MAX_LABELLED_VERSIONS
from edgeserve.contracts.names import label_name

_LOG: Final = logging.getLogger(__name__)
FILE: Final = "labels.json"


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """Where one label stands."""

    stands_for: str
    """A version, or the digest of a release."""
    configured: bool = False
    """The model's configuration placed it, and takes it away."""


class LabelsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`labels.json`."""

    models: dict[str, dict[str, Label]] = {}


class ModelLabels:
    """Labels of all models of a server.

    Args:
        path: The file; None = they are forgotten with the process. One that is damaged is reported and begun anew:
            labels that are missing answer with an error, they mislead nobody.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._models: dict[str, dict[str, Label]] = _read(path) if path is not None else {}

    def of(self, model: str) -> Mapping[str, Label]:
        """Label -> where it stands."""
        return dict(self._models.get(model, {}))

    def update(self, model: str, labels: Mapping[str, Label]) -> None:
        """Let `labels` be all labels of `model`; durable when this returns.

        Raises:
            InputError: A name is not allowed, or they are too many.
            DeviceError: They could not be written; the old ones stand.
        """
        if labels == self._models.get(model, {}):
            return
        _check(model, labels)
        changed = {**self._models, model: dict(labels)}
        if not labels:
            del changed[model]
        if self._path is not None:
            atomic.write_bytes(self._path, encode(LabelsDocument(models=changed)))
        self._models = changed


def _read(path: Path) -> dict[str, dict[str, Label]]:
    try:
        models = decode(path.read_bytes(), LabelsDocument, what=str(path), limit=MAX_CONFIG_BYTES).models
        for model, labels in models.items():
            _check(model, labels)
        return models
    except FileNotFoundError:
        return {}
    except (OSError, EdgeServeError) as error:
        _LOG.error("labels are lost, set them again: %s", error)
        return {}


def _check(model: str, labels: Mapping[str, Label]) -> None:
    for label in labels:
        label_name(label)
    if len(labels) > MAX_LABELLED_VERSIONS:
        raise InputError(f"model {model!r} has {len(labels)} labels, at most {MAX_LABELLED_VERSIONS} are allowed")


def placed(
    configured: Mapping[str, str], before: Mapping[str, Label], ready: frozenset[str] | set[str]
) -> dict[str, Label]:
    """Where labels stand once the versions in `ready` answer. Pure.

    A label of the configuration moves when its version is ready and stays where it is until then; one that the
    configuration no longer has is gone; those that were set by hand stay.

    Args:
        configured: Label -> version, as the configuration says.
        before: Labels as they stand.
        ready: Versions that answer.
    """
    after = {label: place for label, place in before.items() if label in configured or not place.configured}
    for label, version in configured.items():
        if version in ready:
            after[label] = Label(stands_for=version, configured=True)
        elif label in after:
            after[label] = msgspec.structs.replace(after[label], configured=True)
    return after
