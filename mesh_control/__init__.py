"""The control plane: watches what is wanted, compiles it, and serves sidecars on demand.

Layers, top to bottom: `app`; `serve`; `compile`, and beside it `kube`, the one place that talks to the API
server; `index`. `index` and `compile` are pure.
"""
