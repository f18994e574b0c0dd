"""A model in, judged products for every target out, packed as a release.

`load -> plan -> (calibrate, quantize, convert) -> verify -> pack`; `run.compile_model` is the whole of it.
"""
