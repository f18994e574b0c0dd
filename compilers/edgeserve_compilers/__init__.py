"""A model in, a judged product for one target out, packed as a release."""
