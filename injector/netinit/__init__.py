"""Pod network init: the iptables rules that hand a pod's TCP connections to its sidecar.

`plan` decides the rules and `walk` follows a packet through them, both without I/O; `apply` and `probe`
are the effects.
"""
