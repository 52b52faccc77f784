"""Private parts of :mod:`svcrun.service.raven`."""
