"""One tenant's life: made, suspended, renamed, dropped, brought back, deleted for good."""
