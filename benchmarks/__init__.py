"""Measurements of speed and memory. Their results are ratios of two things in one run."""
