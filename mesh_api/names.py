"""Names and numbers that a pod's spec, its sidecar and the control plane agree on."""

from __future__ import annotations

PREFIX = "triomesh.dev/"
"""Of all our labels and annotations."""
INJECTED = PREFIX + "injected"
"""Annotation of a pod: the version of the injector whose work it is."""
INCLUDE_INBOUND_PORTS = PREFIX + "include-inbound-ports"
EXCLUDE_INBOUND_PORTS = PREFIX + "exclude-inbound-ports"
OPAQUE_PORTS = PREFIX + "opaque-ports"
"""Annotation of a pod, a Service or a namespace: ports whose bytes are never read as HTTP. On a Service they
are the Service's own ports; a namespace's list holds for its pods and Services that have none."""

PROXY_CONTAINER = "triomesh-proxy"
INIT_CONTAINER = "triomesh-init"
INCLUDE_INBOUND_VARIABLE = "TRIOMESH_INCLUDE_INBOUND_PORTS"
EXCLUDE_INBOUND_VARIABLE = "TRIOMESH_EXCLUDE_INBOUND_PORTS"
"""What the network init is told; the sidecar captures accordingly."""

NEVER_CAPTURED = (15020, 15021)
"""Metrics and health of a sidecar: for parties outside the mesh, so in plaintext in every mode."""
MAX_LISTED_PORTS = 4096
"""Ports in one annotation; messages list them one by one."""
