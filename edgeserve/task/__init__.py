"""What the tensors of a model mean, done: one implementation for calibration, validation, golden set and serving.

`prepare` turns a file (JPEG, PNG, WAV) into the tensors of one row; `decode` turns outputs into answers; `score` and
`agreement` judge answers; `present` shows them to clients. All of it follows a `edgeserve.contracts.task.Task`, which
`model_toml` reads. Bit-equal on every machine: numpy and integer arithmetic only, and one image decoder (Pillow).
"""
