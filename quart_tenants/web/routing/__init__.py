"""Routing: which host and which route a request asked for."""
