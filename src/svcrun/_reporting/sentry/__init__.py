"""Report to Sentry with sentry-sdk; the adapters of sentry-sdk and urllib3."""
