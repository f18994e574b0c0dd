"""The plugins of the entry-point group `edgeserve.targets`; the telemetry of their libraries is switched off first."""

import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # makes its import fail, which openvino and nncf accept
