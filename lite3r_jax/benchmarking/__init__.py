"""Cost: analytic operations, latency, memory, beside published figures."""
