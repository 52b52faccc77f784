"""Adapter to aiohttp: a server that is shut down gracefully, and its access log."""
