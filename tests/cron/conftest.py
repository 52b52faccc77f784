"""Cron needs an extra."""

from tests.support import has

collect_ignore_glob = [] if has("croniter") else ["test_*.py"]
