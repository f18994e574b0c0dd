"""Names and digests, checked where they enter: a value of these types cannot climb out of a folder,
match a wildcard or carry markup."""

from __future__ import annotations

import re
from typing import Final

from edgeserve.contracts.errors import InputError

_DEVICE: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_MODEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z")
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")
_LABEL_KEY: Final = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?\Z")
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9._-]{0,63}\Z")
_SERVED: Final = re.compile(r"[^\W_](?:[\w .-]{0,126}[\w])?\Z")
_VERSION_LABEL: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")

DEFAULT_TENANT: Final = "default"


def device_name(text: str) -> str:
    """Return `text` if it names a device: `[a-z0-9-]{1,63}`, not starting or ending with a dash (a DNS label).

    Raises:
        InputError: It does not.
    """
    return _checked(text, _DEVICE, "device name", "use 1 to 63 of a-z, 0-9 and '-', not '-' at an end")


def device_id(text: str) -> str:
    """Return `text` if it is `tenant.device`: the broker user, certificate CN and topic level of a device.

    Raises:
        InputError: It is not.
    """
    tenant, dot, device = text.partition(".")
    if not dot or not _DEVICE.match(tenant) or not _DEVICE.match(device):
        raise InputError(
            f"device id {_shown(text)} is not TENANT.DEVICE",
            hint="use 1 to 63 of a-z, 0-9 and '-' on both sides of the dot",
        )
    return text


def model_name(text: str) -> str:
    """Return `text` if it names a model; the same names are legal OCI repository components.

    Raises:
        InputError: It does not.
    """
    return _checked(
        text,
        _MODEL,
        "model name",
        "use 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit at both ends",
    )


def served_name(text: str) -> str:
    """Return `text` if a model can be served under it: wider than `model_name`, for folders of other servers.

    Raises:
        InputError: It cannot.
    """
    return _checked(text, _SERVED, "model name", "use 1 to 128 letters, digits, blanks, '.', '_' and '-'")


def label_name(text: str) -> str:
    """Return `text` if it can label a version of a model, such as `stable` (TensorFlow Serving's `version_labels`).

    Raises:
        InputError: It cannot.
    """
    return _checked(text, _VERSION_LABEL, "version label", "use 1 to 64 of A-Z, a-z, 0-9, '_' and '-'")


def plugin_name(text: str, what: str) -> str:
    """Return `text` if it can name a target or a runtime (`what` says which in the error).

    Raises:
        InputError: It cannot.
    """
    return _checked(text, _MODEL, f"{what} name", "use 1 to 64 of a-z, 0-9, '.', '_' and '-'")


def version_name(text: str) -> str:
    """Return `text` if it names a release version, `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.

    Raises:
        InputError: It does not.
    """
    return _checked(
        text, _VERSION, "version", "use 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', a letter or digit first"
    )


def file_name(text: str) -> str:
    """Return `text` if it is a plain file name: no folder, no leading dot, no separator.

    Raises:
        InputError: It is not.
    """
    return _checked(text, _FILE, "file name", "a model file lies directly in its variant and has a plain name")


def digest(text: str) -> str:
    """Return `text` if it is `sha256:` and 64 lower-case hexadecimal digits.

    Raises:
        InputError: It is not.
    """
    return _checked(text, _DIGEST, "digest", "write sha256: and 64 hexadecimal digits")


def is_digest(text: str) -> bool:
    """Tell whether `text` is a sha256 digest."""
    return _DIGEST.match(text) is not None


def labels(pairs: dict[str, str]) -> dict[str, str]:
    """Return `pairs` if every key and value is a legal device label.

    Raises:
        InputError: One is not.
    """
    for key, value in pairs.items():
        _checked(key, _LABEL_KEY, "label key", "use a-z, 0-9, '.', '_', '/' and '-'")
        _checked(value, _LABEL_VALUE, f"value of label {key}", "use A-Z, a-z, 0-9, '.', '_' and '-'")
    return pairs


def _checked(text: str, pattern: re.Pattern[str], what: str, hint: str) -> str:
    if not pattern.match(text):
        raise InputError(f"{what} {_shown(text)} is not allowed", hint=hint)
    return text


def _shown(text: str) -> str:
    """Quote `text` so that it cannot break a terminal, a log line or a page."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")
