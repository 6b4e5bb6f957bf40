"""The HTTP face of the API server: paths, formats, discovery, requests and the connections themselves."""
