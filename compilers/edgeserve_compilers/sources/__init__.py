"""Sources: each reads one format that a model was saved in (`edgeserve.sources`)."""
