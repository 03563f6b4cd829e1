"""What all tenants read: the shared schemas, their migrations, and who may use them."""
