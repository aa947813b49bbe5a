"""The addresses of the public internet: our own list, the same on every Python.

`ipaddress.is_global` changes with Python's patch releases and calls fec0::/10, 192.88.99.0/24,
168.63.129.16 and 192.0.0.192 public in some of them. The list below decides instead.

Sources: IANA IPv4 and IPv6 Special-Purpose Address Registries as of 2025-10-09 (every entry,
the "globally reachable" ones too: none is a web server of a merchant), IANA IPv6 address space
(unicast is allocated from 2000::/3 only), the metadata addresses that the cloud providers document.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_SPECIAL_V4 = (
    "0.0.0.0/8",  # This network, RFC 791; Linux takes 0.0.0.0 for loopback.
    "10.0.0.0/8",  # Private use, RFC 1918.
    "100.64.0.0/10",  # Shared (carrier NAT), RFC 6598; Alibaba's metadata is 100.100.100.200.
    "127.0.0.0/8",  # Loopback, RFC 1122.
    # Link local, RFC 3927; the metadata of AWS (169.254.169.254, ECS .170.2, EKS .170.23), Google,
    # Azure, Oracle, DigitalOcean, Scaleway (.42.42), Tencent (.0.23), OpenStack.
    "169.254.0.0/16",
    "172.16.0.0/12",  # Private use, RFC 1918.
    # IETF assignments, RFC 6890: DS-Lite, PCP and TURN anycast, NAT64 discovery; Oracle Cloud
    # Classic's metadata is 192.0.0.192.
    "192.0.0.0/24",
    "192.0.2.0/24",  # Documentation, RFC 5737.
    "192.31.196.0/24",  # AS112, RFC 7535.
    "192.52.193.0/24",  # Multicast tunnels (AMT), RFC 7450.
    "192.88.99.0/24",  # 6to4 and 6a44 relays, RFC 7526 and RFC 6751: they lead into tunnels.
    "192.168.0.0/16",  # Private use, RFC 1918.
    "192.175.48.0/24",  # AS112, RFC 7534.
    "198.18.0.0/15",  # Benchmarks, RFC 2544.
    "198.51.100.0/24",  # Documentation, RFC 5737.
    "203.0.113.0/24",  # Documentation, RFC 5737.
    "224.0.0.0/4",  # Multicast, RFC 5771.
    "240.0.0.0/4",  # Reserved and limited broadcast, RFC 1112 and RFC 8190.
    # Clouds that serve their own machines on public numbers.
    "168.63.129.16/32",  # Azure: the host's agent, with the certificates of the machine.
    "161.26.0.0/16",  # IBM Cloud: services inside a VPC.
    "166.8.0.0/14",  # IBM Cloud: service endpoints inside a VPC.
)
# All within 2000::/3; every address outside it is refused without an entry.
_SPECIAL_V6 = (
    "2001::/23",  # IETF assignments: Teredo, benchmarks, AMT, AS112, ORCHID, drone tags.
    "2001:db8::/32",  # Documentation, RFC 3849.
    "2002::/16",  # 6to4, RFC 3056: an IPv4 address of anybody's choice.
    "2620:4f:8000::/48",  # AS112, RFC 7534.
    "3fff::/20",  # Documentation, RFC 9637.
)
_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
# The one public translator: a DNS64 resolver answers with these for IPv4-only receivers.
# 64:ff9b:1::/48 is for translators of a private network and outside 2000::/3.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# ISATAP (RFC 5214) carries an IPv4 address behind these interface identifiers in any prefix.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)

_NETWORKS_V4 = tuple(ipaddress.IPv4Network(text) for text in _SPECIAL_V4)
_NETWORKS_V6 = tuple(ipaddress.IPv6Network(text) for text in _SPECIAL_V6)


def address_of(text: str) -> Address | None:
    """The text as an address; None where it is a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether the address, and the IPv4 address it may carry, is on the public internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NETWORKS_V4)
    if address.scope_id is not None:
        return False
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(address.packed[-4:]))
    return (
        address in _UNICAST_V6
        and (int(address) >> 32) & 0xFFFF_FFFF not in _ISATAP
        and not any(address in network for network in _NETWORKS_V6)
    )
