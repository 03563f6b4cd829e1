"""A role per tenant: what it may do, and how a block works as it."""
