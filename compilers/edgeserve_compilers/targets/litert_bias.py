"""Biases that make up for what rounding the weights does to the mean of each output channel.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019,
arXiv:1906.04721, section 4.2; here with means measured on calibration rows. Depthwise nets live of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve_compilers.targets.litert_graph import Graph, Weighted

_LARGEST: Final = 127
_DEPTHWISE: Final = "DEPTHWISE_CONV_2D"

Means = Mapping[str, npt.NDArray[np.float64]]


def averaged(graph: Graph) -> dict[str, int]:
    """Tensors whose channel means are needed, with their number of channels."""
    return {layer.input: layer.channels for layer in graph.weighted()}


def corrected(model: bytes, means: Means, float_nodes: Collection[str]) -> bytes:
    """The float model with the biases that its layers shall have once they are quantized; `float_nodes` keep theirs."""
    graph = Graph(model)
    for layer in graph.weighted():
        if layer.name not in float_nodes and layer.input in means:
            graph.set_bias(layer.name, (layer.bias - shift(layer, means[layer.input])).astype(np.float32))
    return graph.write()


def shift(layer: Weighted, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What symmetric int8 weights, one scale an output channel, add to the mean of each output; padding is left out."""
    weights = layer.weights.astype(np.float64)
    outputs = weights.ndim - 1 if layer.op == _DEPTHWISE else 0
    others = tuple(axis for axis in range(weights.ndim) if axis != outputs)
    step = np.abs(weights).max(axis=others, keepdims=True) / _LARGEST
    step[step == 0] = 1.0
    error = np.clip(np.rint(weights / step), -_LARGEST, _LARGEST) * step - weights
    if layer.op == _DEPTHWISE:
        return np.asarray(error.sum(axis=others) * np.repeat(mean, error.shape[-1] // len(mean)))
    flat = error.reshape(error.shape[0], -1, error.shape[-1]).sum(axis=1)
    if flat.shape[1] != len(mean):  # a grouped convolution: each group of outputs has inputs of its own
        groups = np.repeat(mean.reshape(-1, flat.shape[1]), flat.shape[0] * flat.shape[1] // len(mean), axis=0)
        return np.asarray((flat * groups).sum(axis=1))
    return np.asarray(flat @ mean)
