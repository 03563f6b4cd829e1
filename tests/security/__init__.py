"""What an attacker tries, and what nobody may find in a log."""
