"""What is installed in a cluster: one source for `kubectl apply -k` and `meshctl install`."""
