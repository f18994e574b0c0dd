# Sourced by the Makefile: names the broker that scripts/mosquitto.sh unpacked, when the system has none.
if [ -z "${EDGESERVE_MOSQUITTO:-}" ] && [ -x "$PWD/.cache/mosquitto/mosquitto" ]; then
  EDGESERVE_MOSQUITTO="$PWD/.cache/mosquitto/mosquitto"
fi
export EDGESERVE_MOSQUITTO
# And the environment that scripts/onnx2tf.sh made.
if [ -z "${EDGESERVE_ONNX2TF_PYTHON:-}" ] && [ -x "$PWD/.cache/onnx2tf/bin/python" ]; then
  export EDGESERVE_ONNX2TF_PYTHON="$PWD/.cache/onnx2tf/bin/python"
fi
