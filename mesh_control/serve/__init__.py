"""What sidecars and operators connect to: discovery, the CA, metrics, health."""
