"""Identity of workloads: SPIFFE names, the CA and its endpoint, issuing, renewal and verification.

Nothing is imported here: a sidecar loads `verify`, `credentials` and `workload`, which stay clear of the
`cryptography` package; only the CA's own process and a short-lived child that makes keys load that.
"""
