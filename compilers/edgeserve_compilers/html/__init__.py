"""The report as one web page that needs nothing but itself."""

from __future__ import annotations

from edgeserve_compilers.html.page import render
from edgeserve_compilers.html.pictures import picture_of

__all__ = ["picture_of", "render"]
