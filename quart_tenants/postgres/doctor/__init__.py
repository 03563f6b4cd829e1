"""The doctor: attacks the database as a leak would happen."""
