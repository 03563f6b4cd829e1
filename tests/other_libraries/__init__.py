"""Other libraries in an app with tenants, as docs/other-libraries.md says: every block of code there is one here."""
