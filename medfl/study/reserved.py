"""Names that no site may have."""

POOLED = "pooled"
"""The site of the centralised baseline."""
COORDINATOR = "coordinator"
"""The party that ledgers are kept of by this name."""
RESERVED = frozenset({POOLED, COORDINATOR})
