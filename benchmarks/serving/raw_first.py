"""What a start costs at least: import the runtime, load a model, call it once, say how much CPU that was.

python benchmarks/serving/raw_first.py MODEL.onnx SIZE...      # SIZE...: shape of its input
"""

import os
import resource
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(["y"], {"x": np.zeros([int(size) for size in sys.argv[2:]], np.float32)})

used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
