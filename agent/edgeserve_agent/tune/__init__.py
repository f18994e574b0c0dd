"""`edgeserve tune`: which configuration serves a model best on this machine, found by measuring."""
