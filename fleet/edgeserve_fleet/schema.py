"""All tables of the manager's database. Times are Unix seconds of the manager's clock; documents are JSON text.

`SCHEMA_VERSION` rises with every change of a table; `database` refuses what is newer than it knows.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    DDL,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    event,
)

SCHEMA_VERSION: Final = 1

metadata: Final = MetaData()


def _text(name: str) -> Column[str]:
    return Column(name, String, nullable=False, server_default="")


def _number(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default="0")


def _time(name: str) -> Column[float]:
    return Column(name, Float, nullable=False, server_default="0")


def _key(name: str) -> Column[str]:
    return Column(name, String, primary_key=True)


schema_version: Final = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

devices: Final = Table(
    "devices",
    metadata,
    _key("device"),
    _text("profile"),
    _text("labels"),
    Column("token_sha256", String, unique=True),  # null once revoked
    _time("enrolled_at"),
    _time("revoked_at"),
    # The desired document, as it was last signed.
    _number("term"),
    _number("n"),
    Column("envelope", LargeBinary, nullable=False, server_default=""),
    _text("payload_digest"),
    _time("signed_at"),
    # The latest report, and what it answers.
    _text("install_id"),
    _number("epoch"),
    _number("seq"),
    Column("reported", LargeBinary),
    _number("seen_term"),
    _number("seen_n"),
    _time("last_seen"),
    Column("online", Boolean, nullable=False, server_default="0"),
    _number("presence_epoch"),
    _time("stats_at"),
)

# Installations that a device had before: what they still say is too late.
retired_installs: Final = Table("retired_installs", metadata, _key("device"), _key("install_id"), _time("at"))

releases: Final = Table(
    "releases",
    metadata,
    Column("digest", String, primary_key=True),
    _text("model"),
    _text("version"),
    _number("counter"),
    _number("index_size"),
    _text("variants"),
    _time("added_at"),
    _text("added_by"),
    UniqueConstraint("model", "version"),
    UniqueConstraint("model", "counter"),
)

# What each device should be: the desired document is computed from these rows.
assignments: Final = Table(
    "assignments",
    metadata,
    _key("device"),
    _key("model"),
    _text("release"),
    _text("rollout"),
    _text("previous"),
    _time("probation_s"),
)

rollouts: Final = Table(
    "rollouts",
    metadata,
    _key("rollout"),
    _text("model"),
    _text("release"),
    _text("spec"),
    _text("state"),
    _number("wave"),
    _number("waves"),
    _text("reason"),
    _time("created_at"),
    _text("created_by"),
    _time("started_at"),
    _time("ended_at"),
    _time("window_start"),  # evidence before it was acknowledged by a resume
    _time("wave_started_at"),
    Column("extended", Boolean, nullable=False, server_default="0"),
    Index("rollouts_of_model", "model", "state"),
)

rollout_waves: Final = Table(
    "rollout_waves",
    metadata,
    _key("rollout"),
    Column("wave", Integer, primary_key=True, autoincrement=False),
    _number("size"),
    _time("started_at"),
    _time("passed_at"),
)

rollout_devices: Final = Table(
    "rollout_devices",
    metadata,
    _key("rollout"),
    _key("device"),
    _number("wave"),
    _text("state"),
    _text("phase"),
    _text("reason"),
    _text("previous"),
    _time("offered_at"),
    _number("gen_term"),
    _number("gen_n"),
    _time("changed_at"),
    _text("committed_install"),
    _number("committed_epoch"),
    _number("committed_seq"),
    Column("acknowledged", Boolean, nullable=False, server_default="0"),
    Index("rollouts_of_device", "device"),
)

verdicts: Final = Table(
    "verdicts",
    metadata,
    _key("rollout"),
    Column("judgement", Integer, primary_key=True, autoincrement=False),
    _number("wave"),
    _time("at"),
    _text("verdict"),
    _text("evidence"),
)

halts: Final = Table("halts", metadata, Column("release", String, primary_key=True), _text("rollout"), _time("at"))

halt_document: Final = Table(
    "halt_document",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # one row, 1
    _number("term"),
    _number("version"),
    Column("envelope", LargeBinary, nullable=False),
)

events: Final = Table(
    "events",
    metadata,
    _key("device"),
    _key("install_id"),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    _text("model"),
    _text("release"),
    _text("rollout"),
    _text("state"),
    _text("reason"),
    _time("received_at"),
)

# The latest cumulative counters of each life of a serving process ...
counters: Final = Table(
    "counters",
    metadata,
    _key("device"),
    _key("started"),
    _key("model"),
    _key("release"),
    _number("requests"),
    _number("failures"),
    _number("feedback"),
    _number("correct"),
    _text("latency"),
    _time("received_at"),
)

# ... and how they grew: between `covers_from` and `received_at`.
increments: Final = Table(
    "increments",
    metadata,
    Column("id", Integer, primary_key=True),
    _text("device"),
    _text("started"),
    _text("model"),
    _text("release"),
    _time("covers_from"),
    _time("received_at"),
    _number("requests"),
    _number("failures"),
    _number("feedback"),
    _number("correct"),
    _text("latency"),
    Index("increments_in_window", "model", "received_at"),
)

outbox: Final = Table(
    "outbox",
    metadata,
    Column("id", Integer, primary_key=True),
    _text("topic"),
    Column("payload", LargeBinary, nullable=False),
    Column("retain", Boolean, nullable=False),
    _number("expiry_s"),
    _time("created_at"),
    Index("outbox_of_topic", "topic"),
    sqlite_autoincrement=True,  # an id that was published is never given again
)

idempotency: Final = Table("idempotency", metadata, _key("key"), _text("body_sha256"), _text("rollout"), _time("at"))

audit: Final = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    _time("at"),
    _text("actor"),
    _text("action"),
    _text("subject"),
    _text("detail"),
)

for _operation in ("UPDATE", "DELETE"):
    event.listen(
        audit,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER audit_is_append_only_{_operation.lower()} BEFORE {_operation} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        ).execute_if(dialect="sqlite"),
    )
