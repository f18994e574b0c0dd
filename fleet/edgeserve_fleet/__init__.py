"""The fleet manager: registry, rollouts, REST API and the web page."""
