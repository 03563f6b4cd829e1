"""Speak HTTP as Hypercorn does, within limits that it does not set, and by a shorter way where a request is plain."""
