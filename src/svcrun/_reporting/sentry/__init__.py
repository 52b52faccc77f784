"""Report to Sentry with sentry-sdk. The modules are the adapters of sentry-sdk and urllib3."""
