"""Clients: of the Open Inference Protocol, and of the fleet manager's REST API."""
