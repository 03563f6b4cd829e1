"""Blocks: one transaction on one connection for one tenant. The only room that sets search_path."""
