"""The connection to the MQTT broker, and the broker that edgeserve starts itself.

`base` holds the contract, `mqtt` the one implementation (the only file that imports paho), `mosquitto` the broker.
"""
