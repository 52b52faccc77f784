"""One life of an entrypoint: its block, OS signals, the exit watchdog, the clean-up of its loop."""
