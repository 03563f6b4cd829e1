"""The driver: the only room that touches asyncpg's inside."""
