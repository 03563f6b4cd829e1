"""The registry: which tenants exist, in its tables and in the memory of each worker."""
