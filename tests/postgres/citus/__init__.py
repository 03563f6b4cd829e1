"""What is otherwise on Citus, tried on a PostgreSQL that only looks like it."""
