"""Device profiles, probes of the machine at hand, and matching with reasons."""
