"""The kinds that the server knows at the moment: the built-in ones and those of CustomResourceDefinitions."""

from collections.abc import Iterable, Sequence

from mesh_local.kinds.base import Kind


class Registry:
    """Finds kinds by name, by path and by apiVersion; ordered as discovery shows them.

    Attributes:
        generation: rises with each change, for whoever caches what is derived from the kinds.
    """

    def __init__(self, builtin: Sequence[Kind]) -> None:
        self._builtin = tuple(builtin)
        self._custom: dict[str, tuple[Kind, ...]] = {}
        self.generation = 0
        self._index()

    def set_custom(self, definition: str, kinds: Iterable[Kind]) -> None:
        """Serve `kinds` for the CustomResourceDefinition named `definition`; none: stop serving it."""
        kinds = tuple(kinds)
        if kinds == self._custom.get(definition, ()):
            return
        if kinds:
            self._custom[definition] = kinds
        else:
            del self._custom[definition]
        self.generation += 1
        self._index()

    def _index(self) -> None:
        self.kinds: tuple[Kind, ...] = self._builtin + tuple(k for ks in self._custom.values() for k in ks)
        self._paths = {(k.group, k.version, k.plural): k for k in self.kinds}
        self._names: dict[str, Kind] = {}
        for kind in self.kinds:
            self._names.setdefault(kind.resource, kind)

    def by_name(self, resource: str) -> Kind | None:
        """The preferred version of `pods`, `deployments.apps`."""
        return self._names.get(resource)

    def by_path(self, group: str, version: str, plural: str) -> Kind | None:
        return self._paths.get((group, version, plural))

    def has_version(self, group: str, version: str) -> bool:
        return any(k.group == group and k.version == version for k in self.kinds)

    def is_builtin_resource(self, resource: str) -> bool:
        """Whether a definition of this name would stand for a kind that the server has by itself."""
        return any(k.resource == resource for k in self._builtin)

    def is_builtin(self, group: str, version: str) -> bool:
        return any(k.group == group and k.version == version for k in self._builtin)

    def groups(self) -> dict[str, list[str]]:
        """Each named group with its versions, preferred first."""
        found: dict[str, list[str]] = {}
        for kind in self.kinds:
            versions = found.setdefault(kind.group, [])
            if kind.version not in versions:
                versions.append(kind.version)
        found.pop("", None)
        return found
