"""What connections do in `serve`, and that the shorter way answers as Hypercorn does."""
