"""Back up a tenant into a file, and restore or copy it."""
