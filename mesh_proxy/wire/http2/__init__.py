"""HTTP/2 framing (RFC 9113) behind one seam, with two engines."""
