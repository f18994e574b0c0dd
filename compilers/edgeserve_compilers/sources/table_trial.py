"""A file of XGBoost or LightGBM is read in a process of its own first: XGBoost 3.2 was seen to die of a cut `.ubj`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import CONVERTER_S

_LIBRARIES_ONLY: Final = "import sys; sys.path[:] = filter(None, sys.path); "
"""`python -c` looks into the current folder first: a file there would run in the place of the library."""
_SCRIPTS: Final = {
    "xgboost": "import xgboost; m = xgboost.Booster(); m.load_model(bytearray(open(sys.argv[1], 'rb').read())); "
    "m.save_config(); m.num_features()",
    "lightgbm": "import lightgbm; lightgbm.Booster(model_str=open(sys.argv[1], errors='replace').read()).dump_model()",
}


def try_reading(library: str, path: Path) -> None:
    """Make sure that `library` survives the file. An ordinary error counts as survival: the caller meets it again.

    Raises:
        InputError: It does not.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LIBRARIES_ONLY + _SCRIPTS[library], str(path)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=CONVERTER_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{library} does not finish reading {path}", hint="the file is damaged: save it again"
        ) from error
    if done.returncode < 0:
        raise InputError(
            f"{library} dies (signal {-done.returncode}) of {path}",
            hint="the file is truncated or damaged: save it again",
        )
