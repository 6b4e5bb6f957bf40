"""The node's network: namespaces, links, addresses, Service addresses, fault simulation."""
