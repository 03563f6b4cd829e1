"""The product: the HTTP contract through a real Hypercorn, the commands as processes."""
