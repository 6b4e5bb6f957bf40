"""Which HTTP/2 engine is used, and that nothing is imported before one is asked for."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from mesh_proxy.wire.http2 import engines, nghttp2
from mesh_proxy.wire.http2.hyper import HyperEngine
from mesh_proxy.wire.http2.nghttp2 import Nghttp2Engine


def test_libnghttp2_is_the_engine_where_it_is_built() -> None:
    choice = engines.load("auto")
    assert (choice.name, choice.make) == ("nghttp2", Nghttp2Engine)
    assert choice.version == nghttp2.version()
    assert engines.load("nghttp2").why == "it was asked for"


def test_hyper_is_used_when_asked_for() -> None:
    choice = engines.load("hyper")
    assert (choice.name, choice.make) == ("hyper", HyperEngine)
    assert choice.version.startswith("4.")


def test_an_engine_that_is_not_there_is_named() -> None:
    with pytest.raises(engines.EngineError, match="expected auto, nghttp2 or hyper, got 'quic'"):
        engines.load("quic")


def test_this_library_survives_what_older_ones_did_not() -> None:
    assert nghttp2.unsafe() == ""


def test_an_unsafe_library_is_refused_and_the_reason_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nghttp2, "unsafe", lambda: "it takes anything (CVE-0)")
    with pytest.raises(engines.EngineError, match=r"is not safe: it takes anything \(CVE-0\)"):
        engines.load("nghttp2")
    choice = engines.load("auto")
    assert choice.name == "hyper"
    assert "is not safe: it takes anything" in choice.why


def test_without_the_module_the_other_engine_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mesh_proxy.wire.http2.nghttp2")
    monkeypatch.setitem(sys.modules, "mesh_proxy.wire.http2.native", SimpleNamespace())
    with pytest.raises(engines.EngineError, match="is not built, or its library is missing: cannot import"):
        engines.load("nghttp2")
    choice = engines.load("auto")
    assert choice.name == "hyper"
    assert "is not built" in choice.why


def test_importing_the_sidecar_imports_no_engine() -> None:
    script = (
        "import sys, mesh_proxy.app, mesh_proxy.wire.http2.engines\n"
        "found = {'h2', 'cffi', '_cffi_backend', 'mesh_proxy.wire.http2.nghttp2'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(found)}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
