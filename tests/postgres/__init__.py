"""The rooms that speak SQL, on a real PostgreSQL."""
