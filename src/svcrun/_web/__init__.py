"""Host web applications: load them, run their lifespan, stop their servers gracefully."""
