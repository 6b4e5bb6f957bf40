"""What pyproject.toml cannot say: the C module of the libnghttp2 engine."""

import os
import runpy

from setuptools import setup

# By path: importing the package would need what it depends on.
ffibuilder = runpy.run_path("mesh_proxy/wire/http2/native/build.py")["ffibuilder"]
module = ffibuilder.distutils_extension("build")
# Without a compiler or libnghttp2 there is only a warning, and hyper-h2 does the work.
module.optional = os.environ.get("TRIOMESH_NATIVE") != "required"
setup(ext_modules=[module])
