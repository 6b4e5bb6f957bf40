"""The image's recipe, as far as it can be known without building it."""

import py_compile
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from mesh_api.version import VERSION
from mesh_local.lifecycle.prefix import _UNUSED

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("mesh_api", "mesh_ops", "mesh_proxy", "mesh_control", "injector", "certs")


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for name, rest in instructions():
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest))
    return found


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out of the build context; the last line that matches decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").replace("**/", "*")
            if any(fnmatch(part, pattern) for part in (path, *map(str, Path(path).parents))):
                out = not line.startswith("!")
    return out


def test_instructions_are_known() -> None:
    known = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "CMD"}
    assert {name for name, _ in instructions()} == known
    assert len(stages()) == 2


def test_every_copied_file_is_there_and_sent() -> None:
    build, final = stages()
    copied = [rest.split() for name, rest in build if name == "COPY"]
    for *sources, _ in copied:
        for source in sources:
            assert (ROOT / source).exists(), source
            inside = f"{source}/__init__.py" if (ROOT / source).is_dir() else source
            assert not ignored(inside), inside
    assert {source for source, _ in copied} >= set(PACKAGES)
    assert ignored("tests/unit/x.py")
    assert ignored(".git/config")
    assert ignored("mesh_proxy/__pycache__/app.pyc")
    assert [rest for name, rest in final if name == "COPY"] == ["--from=build /opt/triomesh /opt/triomesh"]


def test_the_last_stage_has_no_tools_and_no_root() -> None:
    build, final = stages()
    steps = " ".join(rest for name, rest in final if name == "RUN")
    assert "iptables" in steps
    assert "libnghttp2-14" in steps
    assert "pip uninstall" in steps
    assert "compileall" in steps
    assert not re.search(r"gcc|build-essential|\bgit\b|curl", steps)
    assert [rest for name, rest in final if name == "USER"] == ["1337:1337"]
    assert [rest for name, rest in build if "--require-hashes" in rest and "--only-binary=:all:" in rest]
    # What pip compiles would depend on the times of files.
    assert [rest for name, rest in build if "pip install" in rest and "--no-compile" in rest]
    assert "ensurepip" in steps


def test_the_engines_module_is_compiled_in_the_first_stage() -> None:
    build, _ = stages()
    assert build[0][1] == "${BUILD_BASE} AS build"
    assert ("ARG", "BUILD_BASE=${BASE}") in instructions(), "one base image is enough, unless told otherwise"
    (step,) = (rest for name, rest in build if "build_ext" in rest)
    assert "TRIOMESH_NATIVE=required" in step
    assert "-Werror" in step
    # One that was built for another system must not come along.
    assert ignored("mesh_proxy/wire/http2/native/_nghttp2.cpython-311-x86_64-linux-gnu.so")
    assert not ignored("mesh_proxy/wire/http2/native/engine.c")


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / "lib" / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def test_image_root_makes_programs_that_start(prefix: Path) -> None:
    tool = ROOT / "scripts" / "image-root"
    subprocess.run([sys.executable, tool, prefix], check=True, timeout=60)
    names = {path.name for path in (prefix / "bin").iterdir()}
    assert names == {"triomesh-control", "triomesh-proxy", "triomesh-netinit"}
    done = subprocess.run(
        [prefix / "bin" / "triomesh-netinit", "--help"], capture_output=True, text=True, timeout=30, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert "apply" in done.stdout
    assert list((prefix / "lib" / "mesh_proxy").glob("__pycache__/app.*.pyc"))


def test_image_root_leaves_out_what_nothing_imports(prefix: Path) -> None:
    lib = prefix / "lib"
    unused = ("bin/idna", "aiohttp/web.py", "kubernetes/aio/x.py", "kubernetes/client/models/v1_pod.py")
    needed = ("kubernetes/client/models/__init__.py", "kubernetes/client/configuration.py", "idna/core.py")
    for name in (*unused, *needed):
        (lib / name).parent.mkdir(parents=True, exist_ok=True)
        (lib / name).touch()
        assert name.startswith("bin/") or bool(_UNUSED.match(name)) == (name in unused), (
            "the local cluster differs"
        )
    subprocess.run([sys.executable, ROOT / "scripts" / "image-root", prefix], check=True, timeout=60)
    assert not [name for name in unused if (lib / name).exists()]
    assert not [name for name in needed if not (lib / name).exists()]


def test_image_root_sets_modes_and_byte_code_that_needs_no_times(prefix: Path) -> None:
    app = prefix / "lib" / "mesh_proxy" / "app.py"
    app.chmod(0o600)
    app.parent.chmod(0o777)
    py_compile.compile(str(app))  # by its time, as pip does it
    subprocess.run([sys.executable, ROOT / "scripts" / "image-root", prefix], check=True, timeout=60)
    assert app.stat().st_mode & 0o777 == 0o644
    assert app.parent.stat().st_mode & 0o777 == 0o755
    (compiled,) = (app.parent / "__pycache__").glob("app.*.pyc")
    flags = int.from_bytes(compiled.read_bytes()[4:8], "little")  # PEP 552
    assert flags == 1, "expected byte code that is bound to a hash and not checked"


def test_image_root_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    tool = ROOT / "scripts" / "image-root"
    done = subprocess.run([sys.executable, tool, tmp_path], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.startswith("image-root: triomesh-control: expected ")
