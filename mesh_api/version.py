"""The version of all programs of the project; pyproject.toml has the same, which a test compares."""

VERSION = "0.1.0"
