"""`status.conditions` as lists that keep the order Kubernetes' controllers give them."""

from mesh_local.machinery.objects import Object


def find(conditions: list[Object], type_: str) -> Object | None:
    return next((c for c in conditions if c.get("type") == type_), None)


def without(conditions: list[Object], type_: str) -> list[Object]:
    return [c for c in conditions if c.get("type") != type_]


def replaced(conditions: list[Object], new: Object) -> list[Object]:
    """The conditions with `new` moved to the end, unless the present one has its status and reason.

    The time of transition is kept where the status stays.
    """
    present = find(conditions, new["type"])
    if present is not None and present.get("status") == new["status"]:
        if present.get("reason") == new.get("reason"):
            return conditions
        new = {**new, "lastTransitionTime": present.get("lastTransitionTime")}
    return [*without(conditions, new["type"]), new]


def is_true(conditions: list[Object], type_: str) -> bool:
    found = find(conditions, type_)
    return found is not None and found.get("status") == "True"
