"""The device daemon: control part, model server and their command line."""
