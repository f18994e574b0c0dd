"""When and where the calls of a model run."""
