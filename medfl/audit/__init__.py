"""What happened, in a form that shows every later change: a chain of hashes, and a log on top of it."""
