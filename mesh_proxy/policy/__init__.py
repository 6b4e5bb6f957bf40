"""Decisions of the data path: which endpoint, whether to retry, whose fault. Time and chance come in."""
