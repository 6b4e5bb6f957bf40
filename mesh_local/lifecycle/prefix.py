"""Install the project's own code where every user can read it: a clone under root's home is not.

Pods see it as /opt/triomesh. It holds the product packages, the libraries they need (copied from the running
environment) and one start script for each program.
"""

import compileall
import importlib.metadata
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mesh_local.settings import SettingsError

PACKAGES = ("mesh_api", "mesh_ops", "mesh_proxy", "mesh_control", "injector", "certs")
LIBRARIES = (
    *("trio", "msgspec", "cryptography", "pyroute2", "click"),
    *("h11", "httpcore", "kubernetes", "pyyaml", "google-re2", "h2", "cffi"),
)
# Half of all files: the client's typed models, its variant for asyncio, time zones; nothing imports them.
_UNUSED = re.compile(
    r"(aiohttp|tzdata|kubernetes/aio)/"
    r"|kubernetes/client/(api|models)/(?!(__pycache__/)?__init__\.)"
)
PROGRAMS = {
    "triomesh-proxy": "mesh_proxy.__main__",
    "triomesh-netinit": "injector.netinit.__main__",
    "triomesh-ca": "certs.__main__",
    "triomesh-control": "mesh_control.__main__",
}
MOUNTED_AT = "/opt/triomesh"
_LAUNCHER = """#!{python} -I
import sys
sys.path.insert(0, "{root}/lib")
sys.dont_write_bytecode = True
from {module} import main
sys.exit(main())
"""


def install(target: Path, *, in_use: bool = False) -> None:
    """Put a fresh copy at `target`, replacing what is there.

    Args:
        in_use: containers run that see the present copy: it stays for them, under another name.

    Raises:
        SettingsError: a package or library is not installed in this environment.
    """
    if not in_use:
        for former in target.parent.glob(f"{target.name}.*"):
            shutil.rmtree(former, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    lib = new / "lib"
    lib.mkdir()
    for package in PACKAGES:
        shutil.copytree(_package(package), lib / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in sorted(_closure(LIBRARIES)):
        _copy_distribution(name, lib)
    # Byte code that is missing, so that no start of a container pays for it. By this process: others would
    # outlive it.
    compileall.compile_dir(lib, quiet=2, stripdir=str(lib), prependdir=f"{MOUNTED_AT}/lib")
    programs = new / "bin"
    programs.mkdir()
    python = Path(sys.executable).resolve()
    for program, module in PROGRAMS.items():
        script = programs / program
        script.write_text(_LAUNCHER.format(python=python, root=MOUNTED_AT, module=module))
    (programs / "python3").symlink_to(python)
    for path in (new, *new.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent == programs else 0o644)
    if in_use and target.exists():
        target.rename(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)


def _package(name: str) -> Path:
    path = Path(__file__).resolve().parents[2] / name
    if not path.is_dir():
        raise SettingsError(f"the package {name} is not installed beside mesh_local: expected {path}")
    return path


def _requirements(name: str) -> Iterator[str]:
    for line in importlib.metadata.requires(name) or ():
        if "extra ==" not in line.replace("'", '"'):
            yield re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0]


def _closure(roots: tuple[str, ...]) -> set[str]:
    """The distributions that `roots` need, themselves included; those of other platforms are not here."""
    found: set[str] = set()
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            needs = list(_requirements(name))
        except importlib.metadata.PackageNotFoundError:
            if name in roots:
                raise SettingsError(f"the Python library {name} is not installed") from None
            continue
        found.add(name)
        todo.extend(needs)
    return found


def _copy_distribution(name: str, lib: Path) -> None:
    for file in importlib.metadata.files(name) or ():
        # Scripts lie outside site-packages ("../../bin/x"); nobody needs them here.
        if ".." in file.parts or file.parts[0].endswith(".dist-info") or _UNUSED.match(file.as_posix()):
            continue
        source = Path(str(file.locate()))
        if source.is_file():
            (lib / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, lib / file)  # with its time, so that its byte code stays good
