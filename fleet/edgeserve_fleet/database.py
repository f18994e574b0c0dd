"""The manager's database: one writer, one transaction a step, SQLite in WAL mode.

Whoever writes holds the lock for the length of the transaction; readers do not wait for it. SQLAlchemy Core keeps the
statements free of a dialect; what is SQLite's own is in this file.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, create_engine, event, insert, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve_fleet import schema

_BUSY_TIMEOUT_MS: Final = 10_000


class Database:
    """Opens or creates the database.

    Args:
        url: `sqlite:////absolute/path`, or the path of a file.
        on_step: Called with `begin`, `commit` (about to) and `committed` in every writing transaction; crash tests kill
            the process there.

    Raises:
        InputError: The URL is not understood, the file is not a database, or it was written by a newer edgeserve.
        DeviceError: It cannot be opened or created.
    """

    def __init__(self, url: str | Path, *, on_step: Callable[[str], None] = lambda _step: None) -> None:
        self._on_step = on_step
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._version = 0
        self._writing: Connection | None = None
        text = str(url)
        try:
            address = make_url(text if "://" in text else f"sqlite:///{text}")
        except ArgumentError as error:
            raise InputError(
                f"database URL {text[:120]!r} is not valid", hint="write sqlite:////path/fleet.db"
            ) from error
        if address.get_backend_name() != "sqlite" or address.database in (None, "", ":memory:"):
            raise InputError(
                f"database {address.get_backend_name()} is not supported", hint="write sqlite:////path/fleet.db"
            )
        self._name = address.database
        self._engine = create_engine(address)
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        try:
            self._prepare()
        except (DeviceError, InputError) as error:
            self._engine.dispose()
            if "not a database" in error.message or "malformed" in error.message:
                raise InputError(f"{self._name} is no database of edgeserve, or it is damaged") from error
            raise

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Write: everything or nothing. Inside another of the same thread it is a savepoint of that one.

        Raises:
            DeviceError: The database refused, for example because the disk is full; nothing has changed.
        """
        with self._lock:
            if self._writing is not None:
                with self._writing.begin_nested():
                    yield self._writing
                return
            with self._refusals(), self._engine.connect().execution_options(writes=True) as connection:
                before = _rows_changed(connection)
                try:
                    with connection.begin():
                        self._writing = connection
                        self._on_step("begin")
                        yield connection
                        self._on_step("commit")
                finally:
                    self._writing = None
                changed = _rows_changed(connection) != before
            self._on_step("committed")
        if changed:
            self._notify()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Read one consistent state, without waiting for writers.

        Raises:
            DeviceError: The database refused, for example because of an I/O error.
        """
        with self._refusals(), self._engine.connect() as connection, connection.begin():
            yield connection

    def version(self) -> int:
        """A number that rises with every writing transaction of this process."""
        return self._version

    def wait_for_change(self, since: int, timeout_s: float) -> int:
        """Block until `version` is not `since` or the time is over; returns it."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != since, timeout_s)
            return self._version

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:  # what fails while a connection is configured comes as it is
            cause = error.orig if isinstance(error, DBAPIError) else error
            raise DeviceError(
                f"the database {self._name} refused: {cause}", hint="check space and permissions of its folder"
            ) from error

    def _notify(self) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def _prepare(self) -> None:
        with self.transaction() as connection:
            if not inspect(connection).has_table("schema_version"):
                if inspect(connection).get_table_names():
                    raise InputError(f"{self._name} is a database of something else")
                schema.metadata.create_all(connection)
                connection.execute(insert(schema.schema_version).values(version=schema.SCHEMA_VERSION))
            found = connection.execute(select(schema.schema_version.c.version)).scalar_one()
        if found != schema.SCHEMA_VERSION:
            raise InputError(
                f"{self._name} has schema {found}, this edgeserve knows {schema.SCHEMA_VERSION}",
                hint="update edgeserve, or restore a copy of the database from before the update",
            )


def _configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DBAPI connection has no type
    # sqlite3 opens transactions by itself, late and not for reads; SQLAlchemy's documented cure is to forbid it.
    connection.isolation_level = None
    # The patience first: the pragmas after it may have to wait for another connection, too.
    for pragma in (f"busy_timeout={_BUSY_TIMEOUT_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _rows_changed(connection: Connection) -> int:
    """Rows that this connection has ever changed (sqlite3_total_changes)."""
    driver = connection.connection.dbapi_connection
    assert driver is not None
    return int(driver.total_changes)
