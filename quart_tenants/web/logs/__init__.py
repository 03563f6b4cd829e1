"""Logs: one line for each event, with the request and the tenant, without secrets."""
