"""Keep a folder with the backups of all tenants, run after run."""
