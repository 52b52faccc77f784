"""Report log records and errors to Sentry."""
