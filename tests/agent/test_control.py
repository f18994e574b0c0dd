"""The local interface against peers that say what they should not."""

from __future__ import annotations

import socket
import threading

import pytest

from edgeserve.contracts.errors import InputError, TransientError
from edgeserve_agent import control

NO_DOCUMENTS = [b"", b"{", b'{"type": "\xff"}', b"[" * 100_000, b'{"type":"ServingStatus"}', b"\xff\xfe"]
IDS = ["nothing", "half", "invalid UTF-8", "deep", "fields missing", "no text"]


@pytest.mark.parametrize("line", NO_DOCUMENTS, ids=IDS)
def test_a_line_that_is_no_command_is_bad_input(line):
    with pytest.raises(InputError, match="not a control command"):
        control.parse(line)


@pytest.mark.parametrize("line", NO_DOCUMENTS, ids=IDS)
def test_an_answer_that_is_none_is_as_good_as_no_answer(state_dir, line):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state_dir / "s"))
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(line + b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises(TransientError):
                control.call(state_dir / "s", control.Status(), control.ServingStatus)
        finally:
            thread.join()
