"""The privacy ledger: what was spent on which data, written down before it is spent."""
