"""The fleet is migrated."""
