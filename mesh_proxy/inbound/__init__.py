"""Connections that come to this pod."""
