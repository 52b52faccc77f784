"""Memory statistics, profiles and flame graphs of a running program."""
