"""What noise costs: accountants, the tests before a charge, and plans."""
