"""Everything that speaks SQL. Knows no Quart."""
