"""What is between aiohttp and an ASGI application: one exchange for each request or web socket."""
