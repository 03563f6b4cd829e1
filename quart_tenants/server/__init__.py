"""Runs an app by Hypercorn: workers, limits, protocols. Knows nothing of the reference app."""
