"""The files that all containers of a pod share: /etc/hosts, /etc/hostname, /etc/resolv.conf."""

from collections.abc import Sequence
from pathlib import Path

from mesh_local.kubelet.types import KubeletOptions
from mesh_local.machinery.objects import Object, dig, name_of, namespace_of

_HOSTS_HEAD = """# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""
# resolv.conf(5), and the kubelet's own limits.
MAX_NAMESERVERS = 3
MAX_SEARCHES = 32
NODE_RESOLV_CONF = Path("/etc/resolv.conf")


def hostname(pod: Object, options: KubeletOptions) -> str:
    if dig(pod, "spec", "hostNetwork"):
        return options.node
    short = str(dig(pod, "spec", "hostname", default=name_of(pod)))[:63].rstrip("-.")
    full = full_name(pod, options)
    return full if dig(pod, "spec", "setHostnameAsFQDN") and full else short


def full_name(pod: Object, options: KubeletOptions) -> str:
    """The name of the pod in the cluster's DNS; '' without a subdomain."""
    subdomain = dig(pod, "spec", "subdomain")
    if not subdomain:
        return ""
    short = dig(pod, "spec", "hostname", default=name_of(pod))
    return f"{short}.{subdomain}.{namespace_of(pod)}.svc.{options.cluster_domain}"


def hosts(pod: Object, options: KubeletOptions, ips: Sequence[str]) -> str:
    """/etc/hosts."""
    full = full_name(pod, options)
    names = "\t".join(n for n in (full, hostname(pod, options).split(".")[0]) if n)
    text = _HOSTS_HEAD + "".join(f"{ip}\t{names}\n" for ip in ips)
    aliases = dig(pod, "spec", "hostAliases", default=[])
    if aliases:
        text += "\n# Entries added by HostAliases.\n"
        text += "".join("\t".join((a["ip"], *(a.get("hostnames") or ()))) + "\n" for a in aliases)
    return text


def resolv_conf(pod: Object, options: KubeletOptions, node_file: str) -> str:
    """/etc/resolv.conf.

    Args:
        node_file: the node's own.
    """
    policy = str(dig(pod, "spec", "dnsPolicy", default="ClusterFirst"))
    servers, searches, settings = _parse(node_file)
    if policy == "ClusterFirst" and dig(pod, "spec", "hostNetwork"):
        policy = "Default"
    if policy == "None":
        servers, searches, settings = [], [], {}
    elif policy != "Default" and options.dns_ips:
        domain = options.cluster_domain
        servers = list(options.dns_ips)
        searches = [f"{namespace_of(pod)}.svc.{domain}", f"svc.{domain}", domain, *searches]
        settings = {"ndots": "5"}
    own = dig(pod, "spec", "dnsConfig", default={})
    servers = list(dict.fromkeys([*servers, *(own.get("nameservers") or ())]))[:MAX_NAMESERVERS]
    searches = list(dict.fromkeys([*searches, *(own.get("searches") or ())]))[:MAX_SEARCHES]
    settings |= {o["name"]: str(o.get("value") or "") for o in own.get("options") or ()}
    lines = [f"search {' '.join(searches)}"] if searches else []
    lines += [f"nameserver {server}" for server in servers]
    if settings:
        lines.append("options " + " ".join(f"{k}:{v}" if v else k for k, v in settings.items()))
    return "".join(line + "\n" for line in lines)


def _parse(text: str) -> tuple[list[str], list[str], dict[str, str]]:
    servers: list[str] = []
    searches: list[str] = []
    settings: dict[str, str] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] == "search":
            searches = words[1:]
        elif words[0] == "options":
            for word in words[1:]:
                key, _, value = word.partition(":")
                settings[key] = value
    return servers, searches, settings


def write_files(pod: Object, options: KubeletOptions, ips: Sequence[str], directory: Path) -> dict[str, Path]:
    """Write the files into the pod's directory; target in the container -> file."""
    try:
        node_file = NODE_RESOLV_CONF.read_text()
    except OSError:
        node_file = ""  # a node without one has no resolver
    content = {
        "/etc/hosts": hosts(pod, options, ips),
        "/etc/hostname": hostname(pod, options) + "\n",
        "/etc/resolv.conf": resolv_conf(pod, options, node_file),
    }
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = {}
    for target, text in content.items():
        file = directory / Path(target).name
        file.write_text(text)
        file.chmod(0o644)
        found[target] = file
    return found
