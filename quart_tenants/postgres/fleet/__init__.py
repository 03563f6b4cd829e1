"""All tenants at once: migrate them, tell where they stand, compare their tables."""
