"""All checks, one module for each area or two; importing this package registers them in the order in which they run."""

from __future__ import annotations

from importlib import import_module
from typing import Final

MODULES: Final = (
    "health",
    "inference",
    "datatypes",
    "ids",
    "errors",
    "input_validation",
    "binary",
    "raw",
    "texts",
    "fp16",
    "zero_size",
    "compression",
    "classification",
    "statistics",
    "parameters",
    "shared_memory",
    "settings",
    "v1",
    "grpc_health",
    "grpc_infer",
    "grpc_errors",
    "grpc_extensions",
    "repository",  # it unloads a model
    "overflow",  # last: servers were seen to end here
)

for _module in MODULES:
    import_module(f"{__name__}.{_module}")
