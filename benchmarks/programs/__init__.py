"""Programs that run in fresh processes; each module is one, and gets its parameters as JSON."""
