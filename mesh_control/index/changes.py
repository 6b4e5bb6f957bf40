"""What a change of the index may have changed for sidecars, as keys of the discovery stream.

`pod/IP` stands for every `address/IP:PORT` as well; `workload/NAMESPACE/POD` is the `workload` of one pod.
"""

from __future__ import annotations

import msgspec

from mesh_api.discovery import WORKLOAD_KEY, pod_key, split_address
from mesh_control.index.objects import Key, PolicyKind

PolicyName = tuple[PolicyKind, Key]
"""A policy by kind, and namespace and name."""


class Changes(msgspec.Struct, frozen=True):
    """Keys whose content is another now."""

    keys: frozenset[str] = frozenset()
    networks: bool = False
    """The cluster's ranges are others: any `address/` key may have another answer."""
    policies: frozenset[PolicyName] = frozenset()
    """Policies of which something else may be true now: whether they hold, or what they refer to."""

    def __bool__(self) -> bool:
        return bool(self.keys) or self.networks

    def __or__(self, other: Changes) -> Changes:
        return Changes(
            self.keys | other.keys, self.networks or other.networks, self.policies | other.policies
        )

    def covers(self, key: str, pod: Key) -> bool:
        """Whether the content of a key, asked for by the sidecar of `pod`, is among what has changed."""
        if key == WORKLOAD_KEY:
            return workload_key(pod) in self.keys
        if key.startswith("address/"):
            return self.networks or key in self.keys or pod_key(split_address(key)[0]) in self.keys
        return key in self.keys


NONE = Changes()


def workload_key(pod: Key) -> str:
    """The key of one pod's own configuration."""
    return f"{WORKLOAD_KEY}/{pod[0]}/{pod[1]}"
