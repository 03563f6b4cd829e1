"""Sessions: cookies that belong to one tenant, and logins."""
