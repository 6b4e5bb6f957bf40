"""The sidecar as a process: how it refuses to start, and what it never loads."""

import os
import socket
import subprocess
import sys

import pytest

BASE = {"TRIOMESH_CONFIG_FILE": "/nonexistent/config.json", "TRIOMESH_CA_SOCKET": "/nonexistent/ca.sock"}
ANY_UID = "from mesh_proxy import __main__ as m; m._check_uid = lambda settings: None; m.main()"


def start(*command, env=None):
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **(BASE if env is None else env)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def one_line(result):
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("triomesh-proxy: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_wrong_user():
    if os.geteuid() == 1337:
        pytest.skip("this is the right user")
    line = one_line(start("-m", "mesh_proxy"))
    assert "uid 1337" in line
    assert f"uid {os.geteuid()}" in line


def test_missing_setting():
    env = {"TRIOMESH_CONFIG_FILE": ""}
    assert "TRIOMESH_CONFIG_FILE" in one_line(start("-m", "mesh_proxy", env=env))


def test_engine_that_is_not_built():
    code = f"import sys; sys.modules['mesh_proxy.wire.http2.nghttp2'] = None; {ANY_UID}"
    line = one_line(start("-c", code, env={**BASE, "TRIOMESH_HTTP2_ENGINE": "nghttp2"}))
    assert "the libnghttp2 engine is not built" in line


def test_port_in_use():
    sock = socket.socket()
    with sock:
        try:
            sock.bind(("127.0.0.1", 15001))
            sock.listen()
        except OSError:
            pass  # somebody else has it, which is as good
        line = one_line(start("-c", ANY_UID))
    assert "127.0.0.1:15001" in line
    assert "another sidecar" in line


def test_arguments():
    result = start("-m", "mesh_proxy", "--help")
    assert result.returncode == 0
    assert "TRIOMESH_CONFIG_FILE" in result.stdout
    result = start("-m", "mesh_proxy", "--surprise")
    assert result.returncode == 2
    assert "TRIOMESH_CONFIG_FILE" in result.stderr


@pytest.mark.parametrize("module", ["mesh_proxy.app", "mesh_proxy.__main__"])
def test_what_a_sidecar_never_imports(module):
    code = (
        f"import sys, {module}; "
        "print(*sorted({n.partition('.')[0] for n in sys.modules} "
        "& {'cryptography', 'kubernetes', 'pyroute2', 'click', 'asyncio'}))"
    )
    result = start("-c", code)
    assert result.stdout.strip() == "", result.stderr
