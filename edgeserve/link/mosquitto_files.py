"""The text of mosquitto's files: configuration, access rules and passwords. Pure."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Final

from edgeserve.contracts.limits import MAX_MQTT_PACKET_BYTES
from edgeserve.contracts.topics import HALT, PREFIX

PASSWORD_ITERATIONS: Final = 101
"""PBKDF2 rounds, mosquitto's own default: the passwords are random tokens, which rounds do not make stronger, and a
fleet that reconnects at once is hashed by one thread."""
MAX_QUEUED_MESSAGES: Final = 20_000
"""Messages kept for one client that is away or slow: mosquitto's 1000 lost 85 % of a wave's reports of 8000."""


def configuration(*, folder: Path, host: str, port: int, as_root: bool) -> str:
    """Text of `mosquitto.conf` for a broker whose files all lie in `folder`.

    Persistence: everything is written at a clean stop and every 30 s; what a crash loses, both sides publish again.
    """
    lines = [
        "per_listener_settings false",
        f"listener {port} {host}",
        "allow_anonymous false",
        f"password_file {folder / 'passwords'}",
        f"acl_file {folder / 'acl'}",
        "persistence true",
        f"persistence_location {folder / 'data'}/",
        "autosave_interval 30",
        f"max_packet_size {MAX_MQTT_PACKET_BYTES}",
        f"max_queued_messages {MAX_QUEUED_MESSAGES}",
        "set_tcp_nodelay true",
        f"log_dest file {folder / 'mosquitto.log'}",
        *(f"log_type {kind}" for kind in ("error", "warning", "notice", "information")),
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
    ]
    if as_root:
        lines.append("user root")  # it would drop to `mosquitto`, which cannot write to the folder, and save nothing
    return "\n".join(lines) + "\n"


def access_rules(manager_user: str) -> str:
    """Text of the ACL file: a device (user name = device id) reads its own documents and writes below its `up/`.

    What no rule grants is denied. The rule for `halt` is a pattern without a variable, since a plain `topic` line
    outside a user's part would be for anonymous clients; mosquitto warns about it and does what is meant.
    """
    return "\n".join(
        [
            f"pattern read {PREFIX}/%u/desired",
            f"pattern read {PREFIX}/%u/cmd",
            f"pattern read {PREFIX}/%u/ack",
            f"pattern write {PREFIX}/%u/up/#",
            f"pattern read {HALT}",
            "",
            f"user {manager_user}",
            f"topic readwrite {PREFIX}/#",
            "",
        ]
    )


def password_line(username: str, password: str, salt: bytes) -> str:
    """One line of the password file: `user:$7$ITERATIONS$SALT$HASH`, PBKDF2 with SHA-512 as `mosquitto_passwd` does."""
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PASSWORD_ITERATIONS)
    encoded = "$".join(base64.b64encode(part).decode() for part in (salt, digest))
    return f"{username}:$7${PASSWORD_ITERATIONS}${encoded}"


def read_passwords(text: str) -> dict[str, str]:
    """Line of each user in a password file."""
    lines = (line.strip() for line in text.splitlines())
    return {line.partition(":")[0]: line for line in lines if ":" in line}
