"""Pure data that the parts exchange: values that cannot be invalid, no I/O, no clock.

Every document is a frozen `msgspec.Struct`; `decode` and `encode` in `edgeserve.contracts.documents` are
the only way from and to bytes. Unknown fields are ignored, known ones are checked hard.
"""
