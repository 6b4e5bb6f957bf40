"""Endpoints, their idle connections, and how one of them is chosen for a request."""
