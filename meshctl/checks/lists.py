"""Which checks are run, in which order."""

from meshctl.checks import api, control, prerequisites, services, sidecars

BEFORE = (
    api.REACHABLE,
    api.VERSION,
    api.CLOCK,
    api.NODES,
    prerequisites.PERMISSIONS,
    prerequisites.CRD_VERSIONS,
    prerequisites.KINDS,
    prerequisites.TRANSLATED_EARLY,
)
INSTALLED = (
    api.REACHABLE,
    api.VERSION,
    api.CLOCK,
    api.NODES,
    prerequisites.TRANSLATED_EARLY,
    services.NAMES,
    sidecars.MISSING,
    control.INSTALLED,
    control.DEFINITIONS,
    control.DEPLOYED,
    control.WEBHOOK_BUNDLE,
    control.WEBHOOK_ANSWERS,
    control.DAYS_LEFT,
    control.VERSIONS,
    sidecars.IN_SYNC,
    sidecars.SAME_ROOTS,
    sidecars.ONE_VERSION,
    sidecars.ENGINE,
)
"""What can be answered without the control plane comes first."""
