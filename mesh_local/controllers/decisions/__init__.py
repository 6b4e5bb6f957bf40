"""What a controller should do, computed from objects alone: no I/O, no clock."""
