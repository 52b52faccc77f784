"""Call functions on a schedule."""
