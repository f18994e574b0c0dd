"""Does a server speak the Open Inference Protocol v2? Checks that anyone can point at any server.

`check` says what a check is, `checks/` has them by area, `target` is the server under test, `run` runs them, and
`report` shows what came of it.
"""
