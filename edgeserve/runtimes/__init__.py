"""What runs a compiled model. One folder for all: compilers judge with it, the agent serves with it."""
