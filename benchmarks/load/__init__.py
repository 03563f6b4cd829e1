"""The parts of the measurement of requests: servers beside each other under the same load."""
