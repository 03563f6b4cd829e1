"""How long the pools of tests wait for what, where the machine's speed must not matter."""

from quart_tenants.postgres.driver.timings import Timings

WARM = Timings(fresh=60, known=60, tidy_every=60)
"""Connections stay warm however slow the machine is, and nobody tidies meanwhile."""
