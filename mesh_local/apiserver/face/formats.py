"""Content negotiation: what a client accepts and what it sends."""

from collections.abc import Sequence
from dataclasses import dataclass

from mesh_local.machinery import errors
from mesh_local.machinery.errors import ApiError

JSON = "application/json"
YAML = "application/yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"
_RANGES = {"*/*": JSON, "application/*": JSON, JSON: JSON, YAML: YAML}
_FORMS = {"", "Table", "PartialObjectMetadata", "PartialObjectMetadataList"}


@dataclass(frozen=True, slots=True)
class Format:
    """The form of a response: `as_` is '' for the object itself."""

    media: str = JSON
    as_: str = ""
    group: str = ""
    version: str = ""


def accepted(accept: str) -> list[Format]:
    """What an Accept header lists, in the order of preference."""
    found = []
    for order, item in enumerate(accept.split(",")):
        media, *parameters = (p.strip() for p in item.split(";"))
        if not media:
            continue
        values = dict(p.split("=", 1) for p in parameters if "=" in p)
        try:
            quality = float(values.get("q", "1"))
        except ValueError:
            quality = 1.0
        form = Format(media.lower(), values.get("as", ""), values.get("g", ""), values.get("v", ""))
        found.append((-quality, order, form))
    return [form for _, _, form in sorted(found, key=lambda f: f[:2])] or [Format()]


def choose(accept: str) -> Format:
    """The form in which a resource is answered; protobuf is left to the next choice of the client.

    Raises:
        ApiError: 406.
    """
    formats = accepted(accept)
    for form in formats:
        media = _RANGES.get(form.media)
        if media is None or form.as_ not in _FORMS:
            continue
        if form.as_ and (form.group, form.version) != ("meta.k8s.io", "v1"):
            continue
        return Format(media, form.as_, form.group, form.version)
    raise not_acceptable(formats)


def not_acceptable(wanted: Sequence[Format]) -> ApiError:
    """406; a known media type in an unknown form is told apart, as in the real server."""
    if any(form.as_ for form in wanted):
        text = "only the following media types are accepted: application/json, application/yaml"
        return errors.failure(406, "NotAcceptable", text)
    text = (
        "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, "
        "application/json;stream=watch"
    )
    return errors.failure(406, "NotAcceptable", text, {})


def body_format(content_type: str) -> str:
    """The media type of a request body; a missing one means JSON.

    Raises:
        ApiError: 415.
    """
    media = content_type.split(";")[0].strip().lower() or JSON
    if media not in (JSON, YAML, PROTOBUF):
        raise errors.failure(
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: "
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )
    return media
