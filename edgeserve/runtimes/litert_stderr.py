"""Takes LiteRT's line of information off standard error, where it would stand among a command's own words.

The library writes `INFO: Created TensorFlow Lite XNNPACK delegate for CPU.` from C++ when the first model of a process
is laid out, and has no switch for it. So the first one is a model of ours, while standard error is held back for a
millisecond. No model of the user's is loaded meanwhile: what the library says of one is never lost.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from base64 import b85decode
from collections.abc import Callable, Iterator
from typing import Any, Final

_STDERR: Final = 2
_INFORMATION: Final = b"INFO: "
_RELU: Final = b85decode(
    "7ytkOR7OlQ000gE6aWwa3;+lK000C44gdfE5C8xG8~^|Sv;Y7A0{{R30RR912mk;81ONm81ONa40RR915C8xG3;+}W5C9AS2mk~C3;+NC5C8xG"
    "JOBUyKmY&$L;wH)0RR915C8xG000UA3;+NC2mk~C3IG5A2mk;83;+NC0RR910RR910RR91000000RR910RR910RR91000000ssI2AOHXW1ONa4"
    "?*IS)1ONa40RR910RR91000I62mk~C1^@s61ONa40RR910RR910RR915C8xG3;+xO3jhEB000C43;+NC6951J0000J"
)
"""A model of one operation, y = relu(x) of one float32."""
_lock: Final = threading.Lock()
_done = False


def hush(open_interpreter: Callable[[bytes], Any]) -> None:
    """Let LiteRT say what it says once in a process.

    Args:
        open_interpreter: Makes an interpreter of a model in memory.
    """
    global _done
    with _lock:
        if not _done:
            with _held_back():
                open_interpreter(_RELU).allocate_tensors()
            _done = True


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """What reaches standard error meanwhile, of any thread, is written when the block ends, without `INFO:` lines."""
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            original = os.dup(_STDERR)
        except OSError:  # the disk is full, or a daemon has closed standard error
            yield
            return
        stack.callback(os.close, original)
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(original, _STDERR)
            held.seek(0)
            rest = b"".join(line for line in held if not line.startswith(_INFORMATION))
            while rest:
                rest = rest[os.write(_STDERR, rest) :]
