# The image of control plane, sidecar and network init:
#   /opt/triomesh/bin/triomesh-control, triomesh-proxy, triomesh-netinit
# It is built from the base image, the Python index (wheels with hashes) and Debian's archive (a few packages, which
# a base image may bring instead; then the archive is not asked), and nothing else. `--build-arg PIP_INDEX_URL=...`
# names another index, `--build-arg BASE=...` another base image, `--secret id=pip.conf,src=FILE` gives pip what
# must not stay in an image.
ARG BASE=python:3.11-slim-bookworm
# What the first stage begins with: the same Python, and a compiler where the archive shall not be asked.
ARG BUILD_BASE=${BASE}

FROM ${BUILD_BASE} AS build
ARG PIP_INDEX_URL
COPY requirements/runtime.txt /src/requirements.txt
# Wheels only: no package's code runs while it is installed.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m pip install --no-cache-dir --no-compile --disable-pip-version-check --require-hashes --no-deps \
      --only-binary=:all: --target /opt/triomesh/lib --requirement /src/requirements.txt
COPY mesh_api /opt/triomesh/lib/mesh_api
COPY mesh_ops /opt/triomesh/lib/mesh_ops
COPY mesh_proxy /opt/triomesh/lib/mesh_proxy
COPY mesh_control /opt/triomesh/lib/mesh_control
COPY injector /opt/triomesh/lib/injector
COPY certs /opt/triomesh/lib/certs
COPY scripts/image-root /src/image-root
# The HTTP/2 engine's module; what compiles it stays in this stage.
COPY setup.py /src/setup.py
RUN if ! dpkg-query --show gcc libc6-dev libnghttp2-dev >/dev/null 2>&1; then \
      apt-get update \
      && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends gcc libc6-dev libnghttp2-dev; \
    fi \
 && cd /opt/triomesh/lib \
 && TRIOMESH_NATIVE=required CFLAGS="-Wall -Wextra -Werror" PYTHONPATH=/opt/triomesh/lib \
      python /src/setup.py --quiet build_ext --inplace \
 && rm -rf build
RUN python /src/image-root /opt/triomesh

FROM ${BASE}
# iptables for netinit, libnghttp2 for the sidecar. The base image's byte code is missing, and a read-only root
# could never add it; what pip's own run leaves depends on the times of files, which a builder may change.
RUN if ! dpkg-query --show iptables libnghttp2-14 >/dev/null 2>&1; then \
      apt-get update \
      && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends iptables libnghttp2-14 \
      && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb \
           /var/log/apt /var/log/dpkg.log; \
    fi \
 && stdlib="$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
 && python -m pip uninstall --yes --quiet --root-user-action=ignore setuptools wheel pip \
 && rm -rf "$stdlib/ensurepip" \
 && python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash "$stdlib" \
 && groupadd --gid 1337 triomesh \
 && useradd --uid 1337 --gid 1337 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin triomesh
COPY --from=build /opt/triomesh /opt/triomesh
ENV PATH=/opt/triomesh/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 1337:1337
CMD ["/opt/triomesh/bin/triomesh-proxy"]
