"""Inference requests and answers of the Open Inference Protocol over HTTP: bytes to arrays and back."""
