"""What is between a service and aiohttp: a server that ends in order, and its access log."""
