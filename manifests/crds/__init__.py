"""The custom resources: one module a kind, in terms of the small vocabulary of `schema`."""
