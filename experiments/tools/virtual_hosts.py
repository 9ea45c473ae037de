"""Simulate several hosts on one Linux machine; requires root.

  python experiments/tools/virtual_hosts.py 4 --rate=100mbit

Each host is a network namespace with an address, a host name and one cable to a
switch. A rate limits the cable in both directions, by a token bucket. The
program prints how to run a command on a host, and removes the hosts on Ctrl-C.

A test or a benchmark uses `network`:

  with virtual_hosts.network(2, rate='100mbit') as hosts:
    subprocess.run(hosts[0].command(['hostname']))

Names contain the number of the process, so several networks can exist at once.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
from typing import NamedTuple

_PREFIX = 'prsgd'
_SUBNET = '10.201.7'
MOST_HOSTS = 200
# Host files that `ip netns exec` mounts over those of /etc.
_ETC = pathlib.Path('/etc/netns')
# Small, so that a short transfer cannot pass the limit of a slow cable.
_BUCKET = ('burst', '64kbit', 'latency', '400ms')


class Host(NamedTuple):
  """One simulated host.

  Attributes:
    name: host name, which the other hosts resolve to `address`.
    address: IPv4 address.
    hub: namespace of the switch.
    port: end of the host's cable at the switch.
  """

  name: str
  address: str
  hub: str
  port: str

  def command(self, arguments: Sequence[str]) -> list[str]:
    """Return the arguments that run a command on this host."""
    # The host name is set, because gloo finds its own address by it.
    script = f'hostname {self.name} && exec ip netns exec {self.name} "$@"'
    return ['unshare', '--uts', 'sh', '-c', script, 'sh', *arguments]

  def cut(self) -> None:
    """Unplug the cable."""
    _ip('-n', self.hub, 'link', 'set', self.port, 'down')

  def join(self) -> None:
    """Plug the cable in again."""
    _ip('-n', self.hub, 'link', 'set', self.port, 'up')

  def bytes_sent(self) -> int:
    """Return the bytes this host sent over its cable, with all headers."""
    shown = _ip('-n', self.name, '-s', '-j', 'link', 'show', 'eth0')
    return int(json.loads(shown)[0]['stats64']['tx']['bytes'])


def why_not() -> str | None:
  """Return why this machine cannot simulate hosts, None if it can."""
  if os.geteuid() != 0:
    return 'it requires root'
  for program in ('ip', 'tc', 'unshare'):
    if shutil.which(program) is None:
      return f'it requires the program {program}'
  probe = f'{_PREFIX}-{os.getpid()}-probe'
  try:
    _ip('netns', 'add', probe)
    _ip('netns', 'del', probe)
  except subprocess.CalledProcessError as error:
    return f'network namespaces are refused: {error.stderr.strip()}'
  return None


@contextlib.contextmanager
def network(count: int, *, rate: str | None = None) -> Iterator[list[Host]]:
  """Create hosts on one switch, and remove them after the block.

  Args:
    count: number of hosts, 1 to `MOST_HOSTS`.
    rate: rate of each cable in the form of `tc`, such as '100mbit'. Default:
      unlimited.

  Yields:
    The hosts.

  Raises:
    ValueError: if `count` is out of range.
    subprocess.CalledProcessError: if the system refuses.
  """
  if not 1 <= count <= MOST_HOSTS:
    raise ValueError(f'count must be 1 to {MOST_HOSTS}, got {count}')
  _remove_abandoned()
  own = f'{_PREFIX}-{os.getpid()}'
  hub = f'{own}-hub'
  hosts = [
    Host(f'{own}-{i}', f'{_SUBNET}.{i + 1}', hub, f'port{i}')
    for i in range(count)
  ]
  try:
    _ip('netns', 'add', hub)
    _ip('-n', hub, 'link', 'add', 'switch', 'type', 'bridge')
    _ip('-n', hub, 'link', 'set', 'switch', 'up')
    for host in hosts:
      _plug_in(host, hosts, rate)
    yield hosts
  finally:
    for name in (*(host.name for host in hosts), hub):
      _remove(name)


def _plug_in(host: Host, hosts: Sequence[Host], rate: str | None) -> None:
  _ip('netns', 'add', host.name)
  etc = _ETC / host.name
  etc.mkdir(parents=True)
  names = ['127.0.0.1 localhost', *(f'{h.address} {h.name}' for h in hosts)]
  (etc / 'hosts').write_text('\n'.join(names) + '\n')
  cable = ('link', 'add', 'eth0', 'netns', host.name, 'type', 'veth')
  _ip(*cable, 'peer', 'name', host.port, 'netns', host.hub)
  _ip('-n', host.name, 'address', 'add', f'{host.address}/24', 'dev', 'eth0')
  _ip('-n', host.name, 'link', 'set', 'lo', 'up')
  _ip('-n', host.name, 'link', 'set', 'eth0', 'up')
  _ip('-n', host.hub, 'link', 'set', host.port, 'master', 'switch', 'up')
  if rate is not None:
    # Both ends, because a queue limits only the direction that leaves it.
    for name, end in ((host.name, 'eth0'), (host.hub, host.port)):
      limit = ('root', 'tbf', 'rate', rate, *_BUCKET)
      _run('tc', '-n', name, 'qdisc', 'add', 'dev', end, *limit)


def _remove_abandoned() -> None:
  """Remove the hosts of processes that were killed."""
  listed = _ip('netns', 'list').split('\n')
  for name in (line.split()[0] for line in listed if line):
    prefix, _, rest = name.partition('-')
    pid = rest.partition('-')[0]
    if prefix == _PREFIX and not pathlib.Path('/proc', pid).exists():
      _remove(name)


def _remove(name: str) -> None:
  with contextlib.suppress(subprocess.CalledProcessError):
    _ip('netns', 'del', name)
  shutil.rmtree(_ETC / name, ignore_errors=True)


def _ip(*arguments: str) -> str:
  return _run('ip', *arguments)


def _run(*arguments: str) -> str:
  done = subprocess.run(arguments, check=True, capture_output=True, text=True)
  return done.stdout


def main() -> None:
  summary, details = str(__doc__).split('\n', 1)
  parser = argparse.ArgumentParser(
    description=summary,
    epilog=details,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('count', type=int, help='number of hosts')
  parser.add_argument('--rate', help='rate of each cable, such as 100mbit')
  given = parser.parse_args()
  reason = why_not()
  if reason is not None:
    parser.error(reason)
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  with (
    contextlib.suppress(KeyboardInterrupt),
    network(given.count, rate=given.rate) as hosts,
  ):
    for host in hosts:
      line = shlex.join(host.command(['COMMAND']))
      print(f'{host.name} {host.address}: {line}', flush=True)
    signal.pause()


if __name__ == '__main__':
  main()
