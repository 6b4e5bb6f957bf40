"""Which pod has which addresses, on disk, so that a new runtime finds the pods of the one before."""

import itertools
import os
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from mesh_local.network.addressing import FIRST_POD, LAST_POD, Families
from mesh_local.network.types import NetworkError, PacketFaults

_FILE: Final = "network.json"


class PodRecord(msgspec.Struct, forbid_unknown_fields=True):
    """`index` is the pod's place in the pod ranges of all families."""

    index: int
    faults: PacketFaults = PacketFaults()


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    families: Families
    last_index: int = FIRST_POD - 1
    pods: dict[str, PodRecord] = {}


class Records:
    """The pods by uid. Every change is on disk before it is made use of."""

    def __init__(self, directory: Path, families: Families) -> None:
        """Read what is there. Raises NetworkError."""
        self._path = directory / _FILE
        try:
            self._content = msgspec.json.decode(self._path.read_bytes(), type=_Content)
        except FileNotFoundError:
            self._content = _Content(families)
        except (OSError, msgspec.DecodeError) as error:
            raise NetworkError(f"{self._path}: cannot read the network's records: {error}") from None
        if self._content.families != families:
            raise NetworkError(
                f"this cluster was started with families {self._content.families}, not {families}:"
                " take it down first"
            )

    @property
    def pods(self) -> dict[str, PodRecord]:
        return self._content.pods

    def allocate(self, uid: str) -> PodRecord:
        """The pod's record; a new one takes the first free index after the last one given out.

        So an address comes back only after all others were used: a stale connection or cache entry does not
        reach a stranger. Raises NetworkError.
        """
        if uid in self.pods:
            return self.pods[uid]
        used = {pod.index for pod in self.pods.values()}
        last = self._content.last_index
        candidates = itertools.chain(range(last + 1, LAST_POD + 1), range(FIRST_POD, last + 1))
        index = next((i for i in candidates if i not in used), None)
        if index is None:
            raise NetworkError(f"all {len(used)} pod addresses are in use")
        self._content.last_index = index
        self.pods[uid] = PodRecord(index)
        try:
            self.save()
        except NetworkError:
            del self.pods[uid]
            raise
        return self.pods[uid]

    def release(self, uid: str) -> None:
        if self.pods.pop(uid, None) is not None:
            self.save()

    def save(self) -> None:
        """Replace the file in one step. Raises NetworkError."""
        try:
            handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{_FILE}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(msgspec.json.encode(self._content))
                os.replace(temporary, self._path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise NetworkError(f"{self._path}: cannot write the network's records: {error}") from None

    @staticmethod
    def remove(directory: Path) -> None:
        """Remove the file, readable or not, and what a killed writer left. Raises NetworkError."""
        try:
            for path in (directory / _FILE, *directory.glob(f".{_FILE}.*")):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise NetworkError(f"{directory}: cannot remove the network's records: {error}") from None
