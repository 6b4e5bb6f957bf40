"""Equipment for tests: a CA, in-process sidecars, small clients and servers, network namespaces."""
