"""Guards: what is refused, limited or added before and after the app's own code runs."""
