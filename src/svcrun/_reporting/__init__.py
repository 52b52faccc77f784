"""Send reports of log records to Sentry."""
