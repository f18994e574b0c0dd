"""The model server: one data plane, protocol adapters around it, and the process that runs them."""
