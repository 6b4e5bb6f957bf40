"""What may stand in a CustomResourceDefinition (apiextensions' `validation` package)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mesh_local.machinery import jsonpath, names
from mesh_local.machinery.errors import FieldError, invalid_value, not_supported, required
from mesh_local.machinery.objects import Object, dig, meta, name_of
from mesh_local.machinery.structural_check import check_schema

APPROVAL = "api-approved.kubernetes.io"
IMMUTABLE = "field is immutable"
_COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
_COLUMN_FORMATS = ("byte", "date", "date-time", "double", "float", "int32", "int64", "password")


def versions_of(crd: Mapping[str, Any]) -> list[Object]:
    found: list[Object] = dig(crd, "spec", "versions", default=[])
    return found


def validate_crd(crd: Object) -> list[FieldError]:
    return [*_name_errors(crd), *_spec_errors(crd["spec"]), *_approval_errors(crd)]


def validate_crd_update(new: Object, old: Object) -> list[FieldError]:
    spec, before = new["spec"], old["spec"]
    errors = list(_spec_errors(spec))
    fixed: list[tuple[str, ...]] = [("group",), ("names", "plural")]
    if is_true(old, "Established"):
        fixed = [("scope",), ("names", "kind"), *fixed]
    errors += [
        invalid_value(".".join(("spec", *path)), dig(spec, *path), IMMUTABLE)
        for path in fixed
        if dig(spec, *path) != dig(before, *path)
    ]
    served = {v.get("name") for v in versions_of(new)}
    for index, version in enumerate(dig(new, "status", "storedVersions", default=[])):
        if version not in served:
            where = f"status.storedVersions[{index}]"
            errors.append(invalid_value(where, version, "must appear in spec.versions"))
    return errors + list(_approval_errors(new))


def _name_errors(crd: Object) -> Iterator[FieldError]:
    wanted = f"{dig(crd, 'spec', 'names', 'plural', default='')}.{dig(crd, 'spec', 'group', default='')}"
    if name_of(crd) != wanted:
        yield invalid_value("metadata.name", name_of(crd), 'must be spec.names.plural+"."+spec.group')


def is_protected(group: str) -> bool:
    return any(group == p or group.endswith(f".{p}") for p in ("k8s.io", "kubernetes.io"))


def _approval_errors(crd: Object) -> Iterator[FieldError]:
    """Groups of the Kubernetes community need a note of their review (KEP-1111)."""
    if not is_protected(dig(crd, "spec", "group", default="")):
        return
    where = f"metadata.annotations[{APPROVAL}]"
    value: str = (meta(crd).get("annotations") or {}).get(APPROVAL, "")
    if not value:
        text = (
            f'protected groups must have approval annotation "{APPROVAL}", see '
            "https://github.com/kubernetes/enhancements/pull/1111"
        )
        yield required(where, text)
    elif not value.startswith(("https://", "http://", "unapproved")):
        text = (
            'protected groups must have approval annotation with either a URL or a reason starting with "'
            'unapproved", see https://github.com/kubernetes/enhancements/pull/1111'
        )
        yield invalid_value(where, value, text)


def _spec_errors(spec: Object) -> Iterator[FieldError]:
    yield from _group_errors(spec.get("group") or "")
    scope = spec.get("scope")
    if not scope:
        yield required("spec.scope")
    elif scope not in ("Cluster", "Namespaced"):
        yield not_supported("spec.scope", scope, ("Cluster", "Namespaced"))
    if spec.get("preserveUnknownFields"):
        text = (
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema "
            "instead"
        )
        yield invalid_value("spec.preserveUnknownFields", True, text)
    versions: Sequence[Object] = spec.get("versions") or ()
    for index, version in enumerate(versions):
        if not dig(version, "schema", "openAPIV3Schema"):
            yield required(f"spec.versions[{index}].schema.openAPIV3Schema")
    for index, version in enumerate(versions):
        label = version.get("name") or ""
        if problems := names.dns1035_label(label):
            yield invalid_value(f"spec.versions[{index}].name", label, ",".join(problems))
        yield from _warning_errors(version, f"spec.versions[{index}].deprecationWarning")
    if len({v.get("name") for v in versions}) < len(versions):
        yield invalid_value("spec.versions", list(versions), "must contain unique version names")
    if sum(bool(v.get("storage")) for v in versions) != 1:
        text = "must have exactly one version marked as storage version"
        yield invalid_value("spec.versions", list(versions), text)
    known = spec.get("names") or {}
    for key in ("plural", "singular", "kind", "listKind"):
        if not known.get(key):
            yield required(f"spec.names.{key}")
    yield from _names_errors(known, "spec.names")
    yield from _schema_errors(versions)
    yield from _subresource_errors(versions)
    yield from _column_errors(versions)
    yield from _selectable_errors(versions)
    strategy = dig(spec, "conversion", "strategy", default="")
    if strategy != "None":
        yield not_supported("spec.conversion.strategy", strategy, ("None",))


def _group_errors(group: str) -> Iterator[FieldError]:
    if not group:
        yield required("spec.group")
    elif problems := names.dns_subdomain(group):
        yield invalid_value("spec.group", group, ",".join(problems))
    elif "." not in group:
        yield invalid_value("spec.group", group, "should be a domain with at least one dot")


def _warning_errors(version: Object, where: str) -> Iterator[FieldError]:
    text = version.get("deprecationWarning")
    if text is None:
        return
    if not version.get("deprecated"):
        yield invalid_value(where, text, "can only be set for deprecated versions")
    elif not text:
        yield invalid_value(where, text, "must not be an empty string")
    elif len(text.encode()) > 256:
        yield invalid_value(where, text, "must be <= 256 characters long")
    elif not text.isprintable():
        yield invalid_value(where, text, "must only contain printable UTF-8 characters")


def _names_errors(known: Mapping[str, Any], field: str) -> Iterator[FieldError]:
    for key in ("plural", "singular"):
        if known.get(key) and (problems := names.dns1035_label(known[key])):
            yield invalid_value(f"{field}.{key}", known[key], ",".join(problems))
    for key in ("kind", "listKind"):
        if known.get(key) and (problems := names.dns1035_label(known[key].lower())):
            text = "may have mixed case, but should otherwise match: " + ",".join(problems)
            yield invalid_value(f"{field}.{key}", known[key], text)
    for index, name in enumerate(known.get("shortNames") or ()):
        if problems := names.dns1035_label(name):
            yield invalid_value(f"{field}.shortNames[{index}]", name, ",".join(problems))
    if known.get("kind") and known["kind"] == known.get("listKind"):
        yield invalid_value(f"{field}.listKind", known["listKind"], "kind and listKind may not be the same")
    for index, name in enumerate(known.get("categories") or ()):
        if problems := names.dns1035_label(name):
            yield invalid_value(f"{field}.categories[{index}]", name, ",".join(problems))


def _per_version(versions: Sequence[Object], key: str, shared: str) -> list[tuple[Object, str, Any]]:
    """Each version with the path under which errors in its `key` are reported, and the value.

    What all versions have in common is one field of the spec in Kubernetes' internal type.
    """
    values = [v.get(key) for v in versions]
    if values and all(v == values[0] for v in values):
        return [(versions[0], f"spec.{shared}", values[0])]
    return [(v, f"spec.versions[{i}].{key}", v.get(key)) for i, v in enumerate(versions)]


def _schema_errors(versions: Sequence[Object]) -> Iterator[FieldError]:
    status = any(dig(v, "subresources", "status") is not None for v in versions)
    for version, where, value in _per_version(versions, "schema", "validation"):
        schema = dig(value, "openAPIV3Schema")
        if schema:
            own = status if where == "spec.validation" else dig(version, "subresources", "status") is not None
            yield from check_schema(schema, f"{where}.openAPIV3Schema", status=own)


def _subresource_errors(versions: Sequence[Object]) -> Iterator[FieldError]:
    for _version, where, value in _per_version(versions, "subresources", "subresources"):
        scale = dig(value, "scale")
        if scale is None:
            continue
        for key, roots in (
            ("specReplicasPath", (".spec",)),
            ("statusReplicasPath", (".status",)),
            ("labelSelectorPath", (".spec", ".status")),
        ):
            path = scale.get(key) or ""
            if not path and key != "labelSelectorPath":
                yield required(f"{where}.scale.{key}")
            elif path and not path.startswith(tuple(f"{r}." for r in roots)):
                under = roots[0] if len(roots) == 1 else f"either {roots[0]} or {roots[1]}"
                text = f"should be a json path under {under}"
                yield invalid_value(f"{where}.scale.{key}", path, text)
            elif "[" in path:
                yield invalid_value(f"{where}.scale.{key}", path, "must be a json path in the dot notation")


def _column_errors(versions: Sequence[Object]) -> Iterator[FieldError]:
    shared = "additionalPrinterColumns"
    for _version, where, value in _per_version(versions, shared, shared):
        for index, column in enumerate(value or ()):
            yield from _one_column_errors(column, f"{where}[{index}]")


def _selectable_errors(versions: Sequence[Object]) -> Iterator[FieldError]:
    """Field selectors name one string, boolean or integer (KEP-4358)."""
    for version, where, value in _per_version(versions, "selectableFields", "selectableFields"):
        schema = dig(version, "schema", "openAPIV3Schema", default={})
        for index, entry in enumerate(value or ()):
            at, path = f"{where}[{index}].jsonPath", entry.get("jsonPath") or ""
            found = schema
            for key in path.removeprefix(".").split("."):
                found = dig(found, "properties", key, default={})
            if not path:
                yield required(at)
            elif not path.startswith(".") or not found:
                yield invalid_value(at, path, "is an invalid path: it leads to no field of the schema")
            elif found.get("type") not in ("string", "boolean", "integer"):
                text = (
                    "must point to a field of type string, boolean or integer. Enum string fields and "
                    "strings with formats are allowed."
                )
                yield invalid_value(at, path, text)
            elif path.startswith(".metadata."):
                yield invalid_value(at, path, "must not point to fields in metadata")


def _one_column_errors(column: Object, where: str) -> Iterator[FieldError]:
    kind, shown, path = column.get("type") or "", column.get("format") or "", column.get("jsonPath") or ""
    one_of = f"must be one of {','.join(_COLUMN_TYPES)}"
    if not column.get("name"):
        yield required(f"{where}.name")
    if not kind:
        yield required(f"{where}.type", one_of)
    elif kind not in _COLUMN_TYPES:
        yield invalid_value(f"{where}.type", kind, one_of)
    if shown and shown not in _COLUMN_FORMATS:
        yield invalid_value(f"{where}.format", shown, f"must be one of {','.join(_COLUMN_FORMATS)}")
    if not path:
        yield required(f"{where}.JSONPath")
    elif not path.startswith("."):
        yield invalid_value(f"{where}.JSONPath", path, "must be a simple json path starting with .")
    else:
        try:
            jsonpath.parse(path)
        except jsonpath.PathError as error:
            yield invalid_value(f"{where}.JSONPath", path, str(error))


def is_true(crd: Mapping[str, Any], kind: str) -> bool:
    """Whether the condition of this type is True."""
    found: list[Object] = dig(crd, "status", "conditions", default=[])
    return any(c.get("type") == kind and c.get("status") == "True" for c in found)
