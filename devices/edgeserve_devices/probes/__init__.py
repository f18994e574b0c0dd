"""What a machine says of itself, one module a subject; `edgeserve_devices.inventory` puts it together."""
