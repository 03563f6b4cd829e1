"""A private PostgreSQL for the demo and the tests."""
