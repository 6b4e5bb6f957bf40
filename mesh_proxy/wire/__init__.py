"""Wire formats, without I/O: bytes in, plain values out. Nothing here knows sockets, clocks or trio."""
