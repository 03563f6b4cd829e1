"""The commands for operators, by what they are about."""
