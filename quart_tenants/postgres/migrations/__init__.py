"""Migrations: the files, the parser that reads them, and the plan of what is missing."""
