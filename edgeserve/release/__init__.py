"""The release format: an OCI image layout, read with bounds and written deterministically."""
