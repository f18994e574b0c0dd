"""The way to the manager without a broker: poll for halt list and desired document, post what MQTT would carry.

One thread, since HTTP calls block. It sleeps while the broker is there.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import urllib3

from edgeserve import __version__
from edgeserve.contracts.limits import MAX_DESIRED_BYTES, MAX_HALT_BYTES, MAX_REPORT_BYTES

_TIMEOUT: Final = urllib3.Timeout(connect=5.0, read=15.0)
_LOOK_S: Final = 0.2
_MAX_ANSWER_BYTES: Final = max(MAX_DESIRED_BYTES, MAX_HALT_BYTES, MAX_REPORT_BYTES)
_log = logging.getLogger("edgeserve.agent")


@dataclass(frozen=True)
class Answer:
    """What an HTTP request brought."""

    status: int
    body: bytes
    etag: str = ""


class ManagerHttp:
    """`/v1/me/` of the manager. Sends the device's token; follows no redirect.

    Args:
        url: Base URL of the manager.
        token: Of the device.
    """

    def __init__(self, url: str, token: str) -> None:
        self._base = f"{url.rstrip('/')}/v1/me"
        self._headers = {"Authorization": f"Bearer {token}", "User-Agent": f"edgeserve-agent/{__version__}"}
        self._http = urllib3.PoolManager(retries=False, timeout=_TIMEOUT)

    def get(self, what: str, etag: str) -> Answer:
        """Ask for `desired` or `halt`; status 304 when `etag` still names it.

        Raises:
            urllib3.exceptions.HTTPError: No answer.
        """
        return self._request("GET", what, headers={"If-None-Match": etag} if etag else {})

    def post(self, what: str, body: bytes, content_type: str) -> Answer:
        """Send `reported`, `events` or `stats`.

        Raises:
            urllib3.exceptions.HTTPError: No answer.
        """
        return self._request("POST", what, body=body, headers={"Content-Type": content_type})

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    def _request(self, method: str, what: str, *, headers: dict[str, str], body: bytes | None = None) -> Answer:
        response = self._http.request(
            method,
            f"{self._base}/{what}",
            body=body,
            headers={**self._headers, **headers},
            preload_content=False,
            redirect=False,
        )
        try:
            data = response.read(_MAX_ANSWER_BYTES + 1)
        finally:
            response.close()
        return Answer(response.status, data, response.headers.get("ETag", ""))


class Fallback:
    """Speaks to the manager over HTTP while `needed` says so.

    Args:
        http: The manager.
        poll_s: Seconds between two questions, with jitter.
        needed: Whether the broker has been away for long enough; asked a few times a second.
        on_halt: Called with a halt list that is new, on this thread, before the desired document is asked for.
        on_desired: Called with a desired document that is new, on this thread.
        on_ack: Called with the acknowledgement that answered events.
        on_problem: Called with one line when the manager refuses the device, with an empty one when it no longer does.
    """

    def __init__(
        self,
        http: ManagerHttp,
        *,
        poll_s: float,
        needed: Callable[[], bool],
        on_halt: Callable[[bytes], None],
        on_desired: Callable[[bytes], None],
        on_ack: Callable[[bytes], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self._http = http
        self._poll_s = poll_s
        self._needed = needed
        self._on_new: Final = {"halt": on_halt, "desired": on_desired}  # in the order in which they are asked for
        self._on_ack = on_ack
        self._on_problem = on_problem
        self._lock = threading.Lock()
        self._outgoing: dict[str, tuple[bytes, str]] = {}
        self._stopping = threading.Event()
        self._etags: dict[str, str] = {}
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name="fallback", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End; a request in flight is left behind."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def put(self, what: str, body: bytes, content_type: str) -> None:
        """Have the latest `reported`, `events` or `stats` sent; it takes the place of one that waits."""
        with self._lock:
            self._outgoing[what] = (body, content_type)

    def drop(self) -> None:
        """Forget what waits: it went by the broker."""
        with self._lock:
            self._outgoing.clear()

    def _run(self) -> None:
        next_poll = next_post = 0.0
        while not self._stopping.wait(_LOOK_S):
            now = time.monotonic()
            if not self._needed():
                next_poll = 0.0
                continue
            try:
                if now >= next_post:
                    self._post_all()
                if now >= next_poll:
                    next_poll = now + self._poll_s * random.uniform(0.9, 1.1)  # noqa: S311 - jitter
                    self._poll()
            except (urllib3.exceptions.HTTPError, OSError) as error:
                _log.info("the manager does not answer: %s", error)
                next_post = time.monotonic() + self._poll_s
        self._http.close()

    def _poll(self) -> None:
        """Ask for what is new. Without an answer about halted releases nothing that is wanted is obeyed."""
        for what, on_new in self._on_new.items():
            answer = self._http.get(what, self._etags.get(what, ""))
            if answer.status == 200:
                self._etags[what] = answer.etag
                on_new(answer.body)
            elif answer.status not in (204, 304):
                self._say(f"the manager answers the question for {what} with status {answer.status}")
                return
        self._say("")

    def _post_all(self) -> None:
        for what in ("reported", "events", "stats"):
            with self._lock:
                item = self._outgoing.get(what)
            if item is None:
                continue
            answer = self._http.post(what, *item)
            with self._lock:
                if self._outgoing.get(what) is item:
                    del self._outgoing[what]
            if answer.status >= 300:
                self._say(f"the manager answers {what} with status {answer.status}")
            elif what == "events" and answer.body:
                self._on_ack(answer.body)

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._on_problem(problem)
