"""Answer health checks over HTTP from a thread of its own."""
