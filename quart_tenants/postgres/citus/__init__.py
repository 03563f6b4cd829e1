"""What is otherwise where the extension Citus spreads one database over several machines."""
