"""The user's own code, named `module:function` in a task or on the command line; imported when it is first used.

It runs with all rights of the process, on the device, too, where its module must be importable. `edgeserve compile`
also finds a module in the current folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from edgeserve.contracts.errors import InputError


def load_function(name: str) -> Callable[..., Any]:
    """Import `module:function`.

    Raises:
        InputError: There is no such module or function here, or importing it fails.
    """
    module, _, attribute = name.partition(":")
    hint = f"module {module} is yours: install it here, or name its folder in PYTHONPATH"
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # the user's module raises what it likes
        raise InputError(
            f"{name} cannot be imported on this machine: {type(error).__name__}: {error}", hint=hint
        ) from error
    if not callable(found):
        raise InputError(f"module {module} has no function {attribute!r}", hint=hint)
    return found  # type: ignore[no-any-return]


def call_function(name: str, *arguments: object) -> Any:  # noqa: ANN401 - it returns what it likes
    """Call `module:function`.

    Raises:
        InputError: It cannot be imported, or it raised.
    """
    function = load_function(name)
    try:
        return function(*arguments)
    except Exception as error:  # the user's function raises what it likes
        raise InputError(f"{name} raised {type(error).__name__}: {error}", hint="mend the function") from error
