"""Adapter to uvicorn: its options, a server that is shut down gracefully."""
