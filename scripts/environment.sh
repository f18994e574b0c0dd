# Sourced by the Makefile: names the broker that scripts/mosquitto.sh unpacked, when the system has none.
if [ -z "${EDGESERVE_MOSQUITTO:-}" ] && [ -x "$PWD/.cache/mosquitto/mosquitto" ]; then
  EDGESERVE_MOSQUITTO="$PWD/.cache/mosquitto/mosquitto"
fi
export EDGESERVE_MOSQUITTO
