"""Sparse Linear Attention (SLA); its entry point is `api.sla`."""
