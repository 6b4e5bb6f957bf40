"""A small shop of ordinary programs that know nothing of a mesh, and the demo that shows one around them."""
