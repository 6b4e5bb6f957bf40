"""What the cluster looks like now: a synchronous state machine over objects. Pure."""
