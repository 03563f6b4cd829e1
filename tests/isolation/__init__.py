"""The promises: each with a naive variant that must fail the same test."""
