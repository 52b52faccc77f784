"""Bind sockets, and the endpoints that servers listen at."""

from svcrun._net.endpoint import Endpoint as Endpoint, bind_socket as bind_socket

__all__ = ("Endpoint", "bind_socket")
