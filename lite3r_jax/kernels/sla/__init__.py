"""Sparse Linear Attention; `api.sla` is the door."""
