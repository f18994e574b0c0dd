"""The demonstration: a small fleet of unlike devices on one machine."""
