"""A one-host cluster that speaks the Kubernetes API: pods are network namespaces, containers are processes.

Layers, top to bottom: `cluster` (what `python -m mesh_local` runs), then `controllers`, `kubelet`,
`network` and `dns`, which know only `client`; `apiserver`, which serves it; `kinds` (what each built-in
kind is); `machinery` (the rules every kind shares). `kinds` and `machinery` are pure.
"""
