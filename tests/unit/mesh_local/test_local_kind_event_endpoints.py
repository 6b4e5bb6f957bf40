"""Events in both versions; Endpoints and EndpointSlices."""

from datetime import UTC, datetime

from mesh_local.kinds.endpoints import ENDPOINT_SLICE, ENDPOINTS
from mesh_local.kinds.event import EVENT, EVENTS_EVENT
from mesh_local.machinery.objects import Object

NOW = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
START = "2026-01-01T00:00:00.000000Z"


def scheduled() -> Object:
    """An event that the scheduler wrote through events.k8s.io."""
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "talk.1", "namespace": "t8"},
        "eventTime": START,
        "reportingController": "default-scheduler",
        "reportingInstance": "vm",
        "action": "Binding",
        "reason": "Scheduled",
        "regarding": {"kind": "Pod", "namespace": "t8", "name": "talk"},
        "note": "Successfully assigned t8/talk to node1",
        "type": "Normal",
    }


def test_a_minimal_core_event_gets_the_fields_that_are_always_there() -> None:
    event: Object = {"metadata": {"namespace": "t8"}, "involvedObject": {"namespace": "t8"}}
    EVENT.default(event)
    assert event["source"] == {}
    assert event["eventTime"] is event["firstTimestamp"] is event["lastTimestamp"] is None
    assert event["reportingComponent"] == event["reportingInstance"] == ""
    assert EVENT.validate(event) == []


def test_an_event_belongs_to_the_namespace_of_its_object() -> None:
    [error] = EVENT.validate({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}})
    assert str(error) == 'involvedObject.namespace: Invalid value: "b": does not match event.namespace'


def test_the_new_version_requires_a_time() -> None:
    event = {**scheduled(), "eventTime": None}
    [error] = EVENTS_EVENT.validate(event)
    assert str(error) == "eventTime: Required value"
    assert EVENTS_EVENT.validate(scheduled()) == []


def test_an_event_with_a_time_says_who_reports_it() -> None:
    event = {**scheduled(), "reportingController": "", "action": ""}
    assert [str(e) for e in EVENTS_EVENT.validate(event)] == [
        "reportingController: Required value",
        "action: Required value",
    ]
    [error, _] = EVENT.validate(EVENTS_EVENT.to_stored(event))
    assert str(error) == "reportingComponent: Required value"


def test_both_versions_are_views_of_one_stored_event() -> None:
    event = scheduled()
    EVENTS_EVENT.default(event)
    stored = EVENTS_EVENT.to_stored(event)
    assert stored["apiVersion"] == "v1"
    assert stored["involvedObject"]["name"] == "talk"
    assert stored["message"] == "Successfully assigned t8/talk to node1"
    assert stored["reportingComponent"] == "default-scheduler"
    assert EVENTS_EVENT.from_stored(stored) == event
    assert EVENTS_EVENT.stored_as == EVENT.stored_as == "events"
    assert EVENTS_EVENT.fields["regarding.name"](event) == "talk"
    assert EVENT.fields["involvedObject.name"](stored) == "talk"
    assert EVENT.fields["source"](stored) == "default-scheduler"


def test_the_row_is_the_same_in_both_versions() -> None:
    event = scheduled()
    expected = [
        "5s",
        "Normal",
        "Scheduled",
        "pod/talk",
        "",
        "default-scheduler, vm",
        "Successfully assigned t8/talk to node1",
        "5s",
        1,
        "talk.1",
    ]
    assert EVENTS_EVENT.row(event, NOW) == expected
    assert EVENT.row(EVENTS_EVENT.to_stored(event), NOW) == expected


def test_a_series_counts() -> None:
    event = {**scheduled(), "series": {"count": 7, "lastObservedTime": "2026-01-01T00:00:03.000000Z"}}
    row = EVENTS_EVENT.row(event, NOW)
    assert (row[0], row[7], row[8]) == ("2s", "5s", 7)


def test_endpoints_show_three_and_count_the_rest() -> None:
    subset = {
        "addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}],
        "ports": [{"port": 8080}, {"port": 9090}],
    }
    obj: Object = {"metadata": {"name": "web"}, "subsets": [subset]}
    assert ENDPOINTS.row(obj, NOW)[1] == "10.0.0.1:8080,10.0.0.2:8080,10.0.0.1:9090 + 1 more..."
    assert ENDPOINTS.row({"metadata": {"name": "web"}}, NOW)[1] == "<none>"


def test_an_empty_slice_has_null_lists() -> None:
    obj: Object = {"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [], "ports": []}
    ENDPOINT_SLICE.default(obj)
    assert (obj["endpoints"], obj["ports"]) == (None, None)
    assert ENDPOINT_SLICE.validate(obj) == []
    assert ENDPOINT_SLICE.row(obj, NOW)[1:4] == ["IPv4", "<unset>", "<unset>"]


def test_slice_ports_and_addresses() -> None:
    obj: Object = {
        "metadata": {"name": "s"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["fd00::1"]}, {"addresses": ["127.0.0.1"]}],
        "ports": [{"port": 8080}, {"name": "m", "port": 0}],
    }
    ENDPOINT_SLICE.default(obj)
    assert obj["ports"][0] == {"name": "", "protocol": "TCP", "port": 8080}
    assert [str(e) for e in ENDPOINT_SLICE.validate(obj)] == [
        'endpoints[1].addresses[0]: Invalid value: "fd00::1": must be a valid IPv4 address',
        'endpoints[2].addresses[0]: Invalid value: "127.0.0.1": '
        "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        "ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive",
    ]
    [error] = ENDPOINT_SLICE.validate_update(
        {"addressType": "IPv6", "metadata": {}}, {"addressType": "IPv4", "metadata": {}}
    )
    assert str(error) == 'addressType: Invalid value: "IPv6": field is immutable'
