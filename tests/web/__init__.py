"""The rooms that speak Quart, in the test's own process."""
