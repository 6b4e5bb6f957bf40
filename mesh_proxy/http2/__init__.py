"""HTTP/2 connections: one engine and one socket each, with many streams."""
