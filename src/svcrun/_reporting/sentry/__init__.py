"""Private parts of :mod:`svcrun.service.sentry`."""
