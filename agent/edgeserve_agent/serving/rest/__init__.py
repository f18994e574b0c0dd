"""HTTP dialects: thin adapters over one data plane."""
