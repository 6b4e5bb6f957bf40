"""The control plane: watches what is wanted, compiles it, and serves sidecars on demand.

Layers, top to bottom: `app`; `serve`; `compile`; `index`; `kube`, the one place that talks to the API server.
`index` and `compile` are pure.
"""
