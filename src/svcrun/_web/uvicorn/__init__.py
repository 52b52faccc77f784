"""What is between a service and uvicorn: options, the life of an application, a server."""
