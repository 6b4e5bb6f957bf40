"""Get, list and watch through the HTTP face in process, as recorded on Kubernetes 1.36."""

import base64
import json

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mesh_local.machinery.errors import ApiError
from tests.support.local_api import local_api
from tests.support.local_http import Browser

MAPS = "/api/v1/namespaces/ns/configmaps"
MERGE = "application/merge-patch+json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
PARTIAL = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"


def run(directory, test, *, seven: bool = True):
    """Run with seven ConfigMaps c0..c6; time passes when everybody waits."""

    async def main():
        async with local_api(directory) as local:
            http = Browser(local.api)
            for n in range(7 if seven else 0):
                labels = {"g": "ab"[n % 2], "n": f"v{n}"}
                await http("POST", MAPS, {"metadata": {"name": f"c{n}", "labels": labels}})
            await test(http, local)

    trio.run(main, clock=MockClock(autojump_threshold=0.01))


def names(answer):
    return [o["metadata"]["name"] for o in answer.json["items"]]


def types(answer):
    return [e["type"] for e in answer.events]


async def label(http, name: str, **labels):
    await http("PATCH", f"{MAPS}/{name}", {"metadata": {"labels": labels}}, type=MERGE)


async def watched(http, query: str, actions, **keywords):
    """The answer of a watch during which `actions` ran."""
    answers = []

    async def watch():
        answers.append(await http("GET", f"{MAPS}?watch=true&timeoutSeconds=8&{query}", **keywords))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await wait_all_tasks_blocked(0.001)
        for action in actions:
            await action
    return answers[0]


def test_pages_show_one_version_although_the_world_changes(tmp_path):
    async def test(http, local):
        version = str(local.store.version)
        first = await http("GET", f"{MAPS}?limit=3")
        assert (names(first), first.json["metadata"]["remainingItemCount"]) == (["c0", "c1", "c2"], 4)
        await http("DELETE", f"{MAPS}/c4")
        await http("POST", MAPS, {"metadata": {"name": "c3a"}})
        second = await http("GET", f"{MAPS}?limit=3&continue={first.json['metadata']['continue']}")
        assert (names(second), second.json["metadata"]["remainingItemCount"]) == (["c3", "c4", "c5"], 1)
        third = await http("GET", f"{MAPS}?limit=3&continue={second.json['metadata']['continue']}")
        assert names(third) == ["c6"]
        assert {a.json["metadata"]["resourceVersion"] for a in (first, second, third)} == {version}
        assert "continue" not in third.json["metadata"]

    run(tmp_path, test)


def test_the_items_of_a_built_in_list_carry_no_kind(tmp_path):
    async def test(http, local):
        answer = await http("GET", MAPS)
        assert (answer.json["kind"], answer.json["apiVersion"]) == ("ConfigMapList", "v1")
        assert not any({"kind", "apiVersion"} & set(item) for item in answer.json["items"])
        missing = await http("GET", "/api/v1/namespaces/nowhere/configmaps")
        assert (missing.status, missing.json["items"]) == (200, [])

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        (
            "limit=3&continue=TOKEN&resourceVersion=5",
            400,
            "specifying resource version is not allowed when using continue",
        ),
        (
            "limit=2&continue=garbage",
            400,
            "invalid continue token: continue key is not valid: invalid character '\\u0081' "
            "looking for beginning of value",
        ),
        (
            "resourceVersionMatch=Exact",
            422,
            'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is '
            "forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersion=0&resourceVersionMatch=Exact",
            422,
            'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch '
            '"exact" is forbidden for resourceVersion "0"',
        ),
        (
            "resourceVersion=abc",
            400,
            'invalid resource version: resourceVersion: Invalid value: "abc": strconv.ParseUint: '
            'parsing "abc": '
            "invalid syntax",
        ),
        (
            "resourceVersion=1&resourceVersionMatch=Exact",
            410,
            "The resourceVersion for the provided list is too old.",
        ),
        ("labelSelector=g=a=b", 400, "found '=', expected: ',' or 'end of string'"),
        (
            "fieldSelector=data.x%3Dy",
            400,
            '"data.x" is not a known field selector: only "metadata.name", "metadata.namespace"',
        ),
    ],
)
def test_a_wrong_list_is_refused_in_the_words_of_kubernetes(tmp_path, query, status, message):
    async def test(http, local):
        token = (await http("GET", f"{MAPS}?limit=1")).json["metadata"]["continue"]
        answer = await http("GET", f"{MAPS}?{query.replace('TOKEN', token)}")
        assert (answer.status, answer.json["message"]) == (status, message)

    run(tmp_path, test)


def test_a_version_from_the_future_is_a_timeout_to_try_again(tmp_path):
    async def test(http, local):
        for path in (f"{MAPS}?resourceVersion=99999999", f"{MAPS}/c1?resourceVersion=99999999"):
            answer = await http("GET", path)
            assert (answer.status, answer.header("retry-after")) == (504, "1")
            assert answer.json["message"] == (
                f"Timeout: Too large resource version: 99999999, current: {local.store.version}"
            )

    run(tmp_path, test)


def test_version_zero_ignores_the_limit_and_exact_keeps_it(tmp_path):
    async def test(http, local):
        version = local.store.version
        assert len(names(await http("GET", f"{MAPS}?limit=2&resourceVersion=0"))) == 7
        await http("DELETE", f"{MAPS}/c0")
        exact = await http("GET", f"{MAPS}?limit=1&resourceVersion={version}&resourceVersionMatch=Exact")
        assert (names(exact), exact.json["metadata"]["remainingItemCount"]) == (["c0"], 6)
        newer = await http("GET", f"{MAPS}?resourceVersion={version}&resourceVersionMatch=NotOlderThan")
        assert names(newer)[0] == "c1"

    run(tmp_path, test)


def test_an_expired_page_offers_to_go_on_inconsistently(tmp_path):
    async def test(http, local):
        token = (await http("GET", f"{MAPS}?limit=2")).json["metadata"]["continue"]
        await label(http, "c6", x="y")
        await trio.sleep(301)
        answer = await http("GET", f"{MAPS}?limit=2&continue={token}")
        assert (answer.status, answer.json["reason"]) == (410, "Expired")
        assert answer.json["message"].startswith("The provided continue parameter is too old")
        offered = answer.json["metadata"]["continue"]
        found = json.loads(base64.urlsafe_b64decode(offered + "=" * (-len(offered) % 4)))
        assert found == {"v": "meta.k8s.io/v1", "rv": -1, "start": "c1\0"}
        assert names(await http("GET", f"{MAPS}?limit=2&continue={offered}")) == ["c2", "c3"]

    run(tmp_path, test)


def test_selectors_choose_and_hide_the_remaining_count(tmp_path):
    async def test(http, local):
        answer = await http("GET", f"{MAPS}?limit=2&labelSelector=g%3Da")
        assert names(answer) == ["c0", "c2"]
        assert "continue" in answer.json["metadata"]
        assert "remainingItemCount" not in answer.json["metadata"]
        chosen = await http(
            "GET", f"{MAPS}?labelSelector=g+in+(a,b),n+notin+(v1,v2)&fieldSelector=metadata.name!%3Dc0"
        )
        assert names(chosen) == ["c3", "c4", "c5", "c6"]

    run(tmp_path, test)


def test_tables_and_metadata_are_given_to_who_asks(tmp_path):
    async def test(http, local):
        table = (await http("GET", MAPS, accept=TABLE)).json
        assert (table["kind"], [c["name"] for c in table["columnDefinitions"]]) == (
            "Table",
            ["Name", "Data", "Age"],
        )
        assert table["rows"][0]["cells"][:2] == ["c0", 0]
        assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
        empty = (await http("GET", "/api/v1/namespaces/none/configmaps", accept=TABLE)).json
        assert (len(empty["columnDefinitions"]), empty["rows"]) == (3, [])
        whole = (await http("GET", f"{MAPS}/c1?includeObject=Object", accept=TABLE)).json
        assert whole["rows"][0]["object"]["kind"] == "ConfigMap"
        bare = (await http("GET", f"{MAPS}?includeObject=None", accept=TABLE)).json
        assert {row["object"] for row in bare["rows"]} == {None}
        partial = (await http("GET", MAPS, accept=PARTIAL)).json
        assert (partial["kind"], set(partial["items"][0])) == (
            "PartialObjectMetadataList",
            {"kind", "apiVersion", "metadata"},
        )
        none = (await http("GET", f"{MAPS}?labelSelector=n+in+()", accept=PARTIAL)).json
        assert none["items"] is None
        error = await http("GET", f"{MAPS}/none", accept=TABLE)
        assert (error.status, error.json["kind"]) == (404, "Status")

    run(tmp_path, test)


@pytest.mark.parametrize("query", ["", "resourceVersion=0"])
def test_a_watch_without_a_version_begins_with_what_is_there(tmp_path, query):
    async def test(http, local):
        answer = await watched(http, query, [label(http, "c1", x="y"), http("DELETE", f"{MAPS}/c2")])
        assert types(answer) == ["ADDED"] * 7 + ["MODIFIED", "DELETED"]
        assert answer.events[-1]["object"]["metadata"]["resourceVersion"] == str(local.store.version)
        assert answer.events[0]["object"]["kind"] == "ConfigMap"

    run(tmp_path, test)


def test_a_watch_from_a_version_gives_the_changes_since_and_a_bookmark_before_it_ends(tmp_path):
    async def test(http, local):
        version = local.store.version
        await label(http, "c0", x="y")
        query = f"resourceVersion={version}&allowWatchBookmarks=true"
        answer = await watched(http, query, [http("POST", MAPS, {"metadata": {"name": "new"}})])
        assert types(answer) == ["MODIFIED", "ADDED", "BOOKMARK"]
        assert answer.events[-1]["object"] == {
            "kind": "ConfigMap",
            "apiVersion": "v1",
            "metadata": {"resourceVersion": str(local.store.version)},
        }

    run(tmp_path, test)


def test_bookmarks_come_every_minute(tmp_path):
    async def test(http, local):
        query = f"watch=1&resourceVersion={local.store.version}&allowWatchBookmarks=true&timeoutSeconds=200"
        assert types(await http("GET", f"{MAPS}?{query}")) == ["BOOKMARK"] * 4

    run(tmp_path, test, seven=False)


def test_a_bookmark_never_overtakes_a_change(tmp_path):
    async def test(http, local):
        async def write_when_bookmarks_are_due():
            for minute in range(1, 20):
                await trio.sleep_until(60 * minute)
                await http("POST", MAPS, {"metadata": {"name": f"m{minute}"}})

        query = f"watch=1&resourceVersion={local.store.version}&allowWatchBookmarks=true&timeoutSeconds=1300"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_when_bookmarks_are_due)
            answer = await http("GET", f"{MAPS}?{query}")
        versions = [int(e["object"]["metadata"]["resourceVersion"]) for e in answer.events]
        assert versions == sorted(versions)
        assert (types(answer).count("ADDED"), types(answer).count("BOOKMARK") >= 20) == (19, True)

    run(tmp_path, test, seven=False)


STREAM = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan"


def test_a_streaming_list_marks_the_end_of_its_initial_part(tmp_path):
    async def test(http, local):
        answer = await watched(http, f"{STREAM}&allowWatchBookmarks=true", [label(http, "c0", x="y")])
        assert types(answer) == ["ADDED"] * 7 + ["BOOKMARK", "MODIFIED", "BOOKMARK"]
        marks = [e["object"]["metadata"].get("annotations") for e in answer.events if e["type"] == "BOOKMARK"]
        assert marks == [{"k8s.io/initial-events-end": "true"}, None]
        plain = await watched(http, "allowWatchBookmarks=true", [])
        assert types(plain) == ["ADDED"] * 7 + ["BOOKMARK"] * 2
        assert types(await watched(http, STREAM, [])) == ["ADDED"] * 7

    run(tmp_path, test)


def test_entering_a_selection_is_added_and_leaving_is_deleted(tmp_path):
    async def test(http, local):
        query = f"resourceVersion={local.store.version}&labelSelector=g%3Da"
        actions = [
            label(http, "c1", g="a"),
            label(http, "c0", g="b"),
            label(http, "c2", x="y"),
            label(http, "c3", x="y"),
        ]
        answer = await watched(http, query, actions)
        assert [(e["type"], e["object"]["metadata"]["name"]) for e in answer.events] == [
            ("ADDED", "c1"),
            ("DELETED", "c0"),
            ("MODIFIED", "c2"),
        ]
        left = answer.events[1]["object"]["metadata"]
        assert left["labels"]["g"] == "a"
        assert int(left["resourceVersion"]) > int(answer.events[0]["object"]["metadata"]["resourceVersion"])

    run(tmp_path, test)


def test_one_name_can_be_watched_by_selector_and_by_the_old_path(tmp_path):
    async def test(http, local):
        query = f"resourceVersion={local.store.version}&fieldSelector=metadata.name%3Dc6"
        assert types(await watched(http, query, [label(http, "c6", x="y"), label(http, "c5", x="y")])) == [
            "MODIFIED"
        ]
        old = await http("GET", "/api/v1/watch/namespaces/ns/configmaps/c6?timeoutSeconds=1")
        assert [e["object"]["metadata"]["name"] for e in old.events] == ["c6"]

    run(tmp_path, test)


def test_only_the_first_table_of_a_watch_defines_the_columns(tmp_path):
    async def test(http, local):
        query = f"resourceVersion={local.store.version}"
        answer = await watched(
            http, query, [label(http, "c0", x="y"), label(http, "c1", x="y")], accept=TABLE
        )
        first, second = (e["object"] for e in answer.events)
        assert (first["kind"], len(first["columnDefinitions"]), second["columnDefinitions"]) == (
            "Table",
            3,
            None,
        )
        assert [len(t["rows"]) for t in (first, second)] == [1, 1]

    run(tmp_path, test)


def test_a_watch_that_is_too_old_is_one_error_event(tmp_path):
    async def test(http, local):
        answer = await http("GET", f"{MAPS}?watch=1&resourceVersion=1&allowWatchBookmarks=true")
        assert (answer.status, types(answer)) == (200, ["ERROR"])
        status = answer.events[0]["object"]
        assert (status["code"], status["reason"]) == (410, "Expired")
        assert status["message"] == f"too old resource version: 1 ({local.store.oldest})"

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        (
            "sendInitialEvents=true",
            422,
            'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: '
            "sendInitialEvents requires "
            "setting resourceVersionMatch to NotOlderThan",
        ),
        (
            "resourceVersionMatch=NotOlderThan",
            422,
            'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is '
            "forbidden for watch unless sendInitialEvents is provided",
        ),
        (
            "resourceVersion=abc",
            500,
            'resourceVersion: Invalid value: "abc": strconv.ParseUint: parsing "abc": invalid syntax',
        ),
    ],
)
def test_a_wrong_watch_is_refused_in_the_words_of_kubernetes(tmp_path, query, status, message):
    async def test(http, local):
        answer = await http("GET", f"{MAPS}?watch=true&{query}")
        assert (answer.status, answer.json["message"]) == (status, message)

    run(tmp_path, test)


def test_a_client_that_goes_away_ends_its_watch(tmp_path):
    async def test(http, local):
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: http("GET", f"{MAPS}?watch=true&timeoutSeconds=9999", stop=stop))
            await wait_all_tasks_blocked(0.001)
            assert local.store.watchers("configmaps") == 1
            stop.set()
        assert local.store.watchers("configmaps") == 0

    run(tmp_path, test)


def test_a_cancelled_watch_in_process_leaves_nothing_behind(tmp_path):
    async def test(http, local):
        with trio.move_on_after(1):
            async with local.client.watch("configmaps", "ns") as events:
                assert local.store.watchers("configmaps") == 1
                async for event in events:
                    assert event.object["kind"] == "ConfigMap"
        assert local.store.watchers("configmaps") == 0

    run(tmp_path, test)


def test_a_watch_in_process_that_is_too_old_raises(tmp_path):
    async def test(http, local):
        with pytest.raises(ApiError) as caught:
            async with local.client.watch("configmaps", resource_version="1"):
                pass
        assert caught.value.code == 410

    run(tmp_path, test)


def test_the_end_of_the_store_ends_a_watch(tmp_path):
    async def test(http, local):
        async with local.client.watch("configmaps", "ns") as events:
            local.store.end_watches()
            assert len([e async for e in events]) == 7

    run(tmp_path, test)
