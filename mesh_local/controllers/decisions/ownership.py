"""Which objects a controller owns, should adopt, or should release."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh_local.machinery.objects import Object, controller_of, is_deleting, labels_of, uid_of
from mesh_local.machinery.selectors import LabelSelector


@dataclass(slots=True)
class Claim:
    """`owned` match and are ours; `adopt` match and are nobody's; `release` are ours and no longer match."""

    owned: list[Object] = field(default_factory=list)
    adopt: list[Object] = field(default_factory=list)
    release: list[Object] = field(default_factory=list)


def claim(owner: Object, selector: LabelSelector, candidates: Iterable[Object]) -> Claim:
    """Sort objects of the owner's namespace; an owner that is being deleted takes and gives nothing."""
    found = Claim()
    for obj in candidates:
        controller = controller_of(obj)
        matches = selector.matches(labels_of(obj))
        if controller is not None:
            if controller.get("uid") != uid_of(owner):
                continue
            if matches or is_deleting(owner):
                found.owned.append(obj)
            elif not is_deleting(obj):
                found.release.append(obj)
        elif matches and not is_deleting(owner) and not is_deleting(obj):
            found.adopt.append(obj)
    return found
