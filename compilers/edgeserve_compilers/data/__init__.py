"""Calibration and validation data: what users have (npz, folders, COCO, Ultralytics) to rows of tensors and truth."""
