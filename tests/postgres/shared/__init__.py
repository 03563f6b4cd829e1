"""What all tenants read."""
