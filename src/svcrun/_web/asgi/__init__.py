"""Adapter between aiohttp and ASGI applications: a cycle for each request or web socket."""
