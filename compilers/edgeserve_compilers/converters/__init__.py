"""Converters whose pinned dependencies clash with ours: each in an environment of its own, behind a JSON contract."""
