"""Measures the cost of models: operations, latency and memory, beside published figures."""
