"""Parts that TrafficPolicy and MeshPolicy share: timeouts and retries."""

from manifests.crds.schema import Schema, array, boolean, duration, enum, integer, method, obj, percent

RETRY_ON = (
    "connect-failure",
    "refused-stream",
    "reset-before-request",
    "gateway-error",
    "5xx",
    "429",
    "grpc-cancelled",
    "grpc-deadline-exceeded",
    "grpc-internal",
    "grpc-resource-exhausted",
    "grpc-unavailable",
)


def timeouts() -> Schema:
    return obj(
        {
            "connect": duration("TCP and TLS together. Without: 1s."),
            "request": duration("The whole request, retries included. Without: none."),
            "streamIdle": duration("A stream without a byte in either direction. Without: none."),
            "poolIdle": duration("An idle pooled connection. Without: 60s."),
            "tcpIdle": duration("An opaque connection without a byte. Without: 1h."),
        }
    )


def retry_fields() -> dict[str, Schema]:
    """What a route may say about retries."""
    return {
        "attempts": integer(0, 10, description="Retries, the first try not counted."),
        "retryOn": array(
            enum(*RETRY_ON), len(RETRY_ON), least=1, description="Without: what is safe to send again."
        ),
        "perTryTimeout": duration("One attempt."),
        "backoff": obj({"base": duration(), "max": duration()}),
        "methods": array(method(), 16, least=1, description="Without: idempotent methods."),
        "honorRetryAfter": boolean(),
    }


def retries_with_budget() -> Schema:
    """What a destination may say: as a route, and the budget that its routes share."""
    budget = obj(
        {
            "percent": percent("Retries under way as a share of requests under way. Without: 20."),
            "minPerSecond": integer(0, 10_000, description="Always allowed. Without: 10."),
        }
    )
    return obj({**retry_fields(), "budget": budget})
