"""The fast connection: a plain read in one message, and kept statements. Only this room builds on asyncpg's inside."""
