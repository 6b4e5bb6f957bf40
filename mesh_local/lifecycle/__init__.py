"""`meshctl local up|status|down`: start, inspect and remove a cluster from outside its process."""
