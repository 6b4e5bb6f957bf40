"""The volumes of one pod on the node's file system: made, kept current, unmounted."""

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import trio

from mesh_local.client import Client
from mesh_local.kubelet import atomic, mounts, payload
from mesh_local.kubelet.environment import Lookup
from mesh_local.kubelet.fields import Node
from mesh_local.kubelet.types import VolumeError
from mesh_local.machinery import quantity
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, dig, name_of, namespace_of, parse_time, uid_of

logger = logging.getLogger(__name__)

TOKEN_DEADLINE_S = 30.0
# A token is replaced when this part of its life is over, or after a day (the kubelet's token manager).
TOKEN_LIFE_USED = 0.8
TOKEN_MAX_AGE_S = 24 * 3600.0
TOKEN_RETRY_S = 10.0
TOKEN_MIN_AGE_S = 1.0
# Secrets are kept in memory; no Secret is larger than this.
SECRET_BYTES = 64 * 1024 * 1024

_TYPE_CHECKS: Mapping[str, tuple[Callable[[int], bool], str]] = {
    "Directory": (stat.S_ISDIR, "a directory"),
    "DirectoryOrCreate": (stat.S_ISDIR, "a directory"),
    "File": (stat.S_ISREG, "a file"),
    "FileOrCreate": (stat.S_ISREG, "a file"),
    "Socket": (stat.S_ISSOCK, "a socket file"),
    "CharDevice": (stat.S_ISCHR, "a character device"),
    "BlockDevice": (stat.S_ISBLK, "a block device"),
}


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    renew_at: float  # by the clock of the event loop


class Volumes:
    """The volumes of one pod.

    Args:
        root: directory for them.
        client: requests tokens, as the kubelet.
        lookup: ConfigMaps and Secrets of the pod's namespace.
    """

    def __init__(self, root: Path, client: Client, pod: Object, node: Node, lookup: Lookup) -> None:
        self._root = root
        self._client = client
        self._context = payload.Context(pod, node, (), lookup, self._token)
        self._tokens: dict[tuple[str, int], _Token] = {}
        self._lock = trio.Lock()

    def set_ips(self, ips: Sequence[str]) -> None:
        """Tell the pod's addresses, for the downward API."""
        self._context = replace(self._context, pod_ips=ips)

    async def set_up(self) -> None:
        """Make every volume, or bring it up to date.

        Raises:
            VolumeError: one cannot be made; the text names it.
        """
        async with self._lock:
            for volume in dig(self._context.pod, "spec", "volumes", default=[]):
                try:
                    await self._set_up_one(volume)
                except (VolumeError, OSError) as exc:
                    text = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {exc}'
                    raise VolumeError(text) from exc

    async def refresh(self, pod: Object) -> None:
        """Bring the volumes made from API objects up to date, as far as these exist now."""
        async with self._lock:
            self._context = replace(self._context, pod=pod)
            for volume in dig(pod, "spec", "volumes", default=[]):
                if any(kind in volume for kind in payload.KINDS):
                    try:
                        await self._set_up_one(volume)
                    except (VolumeError, OSError) as exc:
                        logger.warning(
                            "Volume %s of pod %s is not updated: %s", volume["name"], name_of(pod), exc
                        )

    @property
    def renew_at(self) -> float | None:
        """When the first token is due for renewal, by the clock of the event loop."""
        return min((token.renew_at for token in self._tokens.values()), default=None)

    def path(self, name: str) -> Path:
        """Where the volume's content is.

        Raises:
            VolumeError: the pod has no such volume.
        """
        volume = self._named(name)
        if "hostPath" in volume:
            return Path(os.path.realpath(volume["hostPath"]["path"]))
        return self._root / name

    def is_read_only(self, name: str) -> bool:
        """Whether no container may write there: what is made from API objects is the kubelet's alone."""
        volume = self._named(name)
        return any(kind in volume for kind in payload.KINDS)

    def _named(self, name: str) -> Object:
        for volume in dig(self._context.pod, "spec", "volumes", default=[]):
            if volume["name"] == name:
                found: Object = volume
                return found
        raise VolumeError(f'there is no volume "{name}"')

    async def _set_up_one(self, volume: Object) -> None:
        target = self._root / str(volume["name"])
        group = dig(self._context.pod, "spec", "securityContext", "fsGroup")
        if "hostPath" in volume:
            check_host_path(volume["hostPath"])
        elif "emptyDir" in volume:
            _empty_directory(target, volume["emptyDir"] or {}, group)
        elif any(kind in volume for kind in payload.KINDS):
            await self._renew_tokens(volume)
            files = payload.files_of(volume, self._context)
            if not target.is_dir():
                target.mkdir(parents=True, mode=0o755)
                target.chmod(0o755)
            if "secret" in volume or "projected" in volume:
                mounts.mount_tmpfs(target, mode=0o755, size=SECRET_BYTES)
            atomic.write(target, files, datetime.now(UTC), group)
        else:
            kind = next((key for key in volume if key != "name"), "none")
            raise VolumeError(f"the local cluster does not support volumes of type {kind}")

    def _token(self, source: Object) -> str:
        return self._tokens[_key(source)].text

    async def _renew_tokens(self, volume: Object) -> None:
        for source in dig(volume, "projected", "sources", default=[]):
            wanted = source.get("serviceAccountToken")
            if wanted is None:
                continue
            held = self._tokens.get(_key(wanted))
            if held is not None and held.renew_at > trio.current_time():
                continue
            try:
                self._tokens[_key(wanted)] = await self._request(wanted)
            except VolumeError:
                if held is None:
                    raise
                self._tokens[_key(wanted)] = replace(held, renew_at=trio.current_time() + TOKEN_RETRY_S)
                raise

    async def _request(self, source: Object) -> _Token:
        pod = self._context.pod
        audience, seconds = _key(source)
        account = str(dig(pod, "spec", "serviceAccountName", default="default"))
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"name": account, "namespace": namespace_of(pod)},
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": seconds,
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": name_of(pod),
                    "uid": uid_of(pod),
                },
            },
        }
        try:
            with trio.fail_after(TOKEN_DEADLINE_S):
                answer = await self._client.create(
                    "serviceaccounts", body, namespace_of(pod), subresource="token"
                )
        except ApiError as exc:
            raise VolumeError(f"failed to fetch token: {exc.message}") from exc
        except trio.TooSlowError:
            raise VolumeError(f"failed to fetch token: no answer in {TOKEN_DEADLINE_S:.0f} s") from None
        expires = parse_time(answer["status"]["expirationTimestamp"])
        life = (expires - datetime.now(UTC)).total_seconds()
        age = min(max(life * TOKEN_LIFE_USED, TOKEN_MIN_AGE_S), TOKEN_MAX_AGE_S)
        return _Token(str(answer["status"]["token"]), trio.current_time() + age)


def _key(source: Object) -> tuple[str, int]:
    return str(source.get("audience") or ""), int(source.get("expirationSeconds") or 3600)


def _empty_directory(target: Path, source: Object, group: int | None) -> None:
    if not target.is_dir():
        target.mkdir(parents=True)
    elif target.stat().st_mode & 0o777 == 0o777:
        return
    if source.get("medium") == "Memory":
        limit = source.get("sizeLimit")
        size = quantity.parse(limit).ceil() if limit is not None else 0
        mounts.mount_tmpfs(target, mode=0o777, size=size or None)
    if group is not None:
        os.chown(target, -1, group)
    target.chmod(0o777 if group is None else 0o2777)


def check_host_path(source: Object) -> None:
    """See that the path is what its type says. Raises VolumeError, OSError."""
    path, kind = Path(source["path"]), str(source.get("type") or "")
    if kind in ("", "DirectoryOrCreate") and not path.exists():
        path.mkdir(parents=True, mode=0o755)
    elif kind == "FileOrCreate" and not path.exists():
        path.touch(mode=0o644)
    try:
        mode = path.stat().st_mode
    except OSError:
        wanted = _TYPE_CHECKS[kind][1] if kind in _TYPE_CHECKS else "there"
        raise VolumeError(f"hostPath type check failed: {path} is not {wanted}") from None
    if kind in _TYPE_CHECKS and not _TYPE_CHECKS[kind][0](mode):
        raise VolumeError(f"hostPath type check failed: {path} is not {_TYPE_CHECKS[kind][1]}")


def sub_path(root: Path, relative: str) -> Path:
    """The place within a volume that a mount shows; made if missing.

    Raises:
        VolumeError: it leads out of the volume.
    """
    place = root / atomic.check_path(relative)
    real = Path(os.path.realpath(place))
    if real != root and root not in real.parents:
        raise VolumeError(f'failed to prepare subPath "{relative}": it leads out of the volume')
    if not real.exists():
        _make_below(root, real.relative_to(root).parts)
    return real


def _make_below(root: Path, parts: Sequence[str]) -> None:
    """Make directories with the volume's own mode; a symlink that a container puts there is not followed."""
    mode = root.stat().st_mode & 0o777
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            made = False
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=at)
                made = True
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
            if made:
                os.fchmod(at, mode)
    finally:
        os.close(at)
