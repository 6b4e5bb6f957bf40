"""What a replica may be: CA, discovery, injector. A process has one of these roles, or several."""
