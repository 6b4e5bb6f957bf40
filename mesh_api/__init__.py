"""The shared vocabulary: what the control plane tells a sidecar, and what passes between sidecar and CA.

Types and their validation only; nothing here imports another package of the project.
"""
