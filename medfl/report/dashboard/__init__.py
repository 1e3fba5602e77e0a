"""The study lead's page: a run as it goes on, read-only, in a browser."""
