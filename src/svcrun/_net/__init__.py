"""Endpoints, listeners, connections and datagrams."""
