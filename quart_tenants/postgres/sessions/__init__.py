"""What the database remembers about sessions that ended and logins that failed."""
