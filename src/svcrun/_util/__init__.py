"""Tools that every other package uses."""
