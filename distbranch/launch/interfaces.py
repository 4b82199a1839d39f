"""The network interfaces of this machine."""

import psutil


def find_interface(address: str) -> str | None:
    """The name of the network interface that carries an IP address on this machine; None if none does.

    Example:
        >>> find_interface("127.0.0.1")
        'lo'
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            return name
    return None
