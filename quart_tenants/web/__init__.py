"""Everything that speaks Quart. Knows no SQL."""
