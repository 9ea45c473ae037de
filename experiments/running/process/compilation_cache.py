"""Keep compiled programs on disk, so that the next start need not compile them.

JAX's persistent compilation cache reads and writes the programs. This module
chooses its directory and bounds its size.

A program is machine code, and a home directory may be shared by machines. So
each kind of machine has its own directory, named after JAX's version, the
features of the CPU and the number of CPUs. JAX names a program by what it
computes, but not by the CPUs it was compiled for.

The cache only saves time. Without a directory that can be written, a run
compiles its programs, and so it does if one of them is damaged.
"""

import functools
import hashlib
import os
import pathlib
import platform
import re
import stat
import warnings
import zlib

import jax
import jaxlib.version

from experiments.running.process import messages

# Limits of all directories together. The oldest programs are removed.
KEPT_BYTES = 2**28
KEPT_PROGRAMS = 2000
# Programs that compile faster are not kept, because reading costs time, too.
MIN_SECONDS = 0.02

_PROGRAMS = '*-cache'  # the name that JAX gives them
_CHECKED = 'checked'  # file, touched when the programs were checked
_ZSTANDARD = b'\x28\xb5\x2f\xfd'  # its first bytes
# Lines of /proc/cpuinfo that describe the instructions of a CPU.
_FACTS = re.compile(
  r'(?m)^(?:vendor_id|cpu family|model|model name|stepping|flags|Features|'
  r'CPU \w+)\s*:.*$'
)
# Levels of XLA's log: the one that JAX sets, and fatal errors only.
_LOG_LEVEL = 1
_FATAL = 3
# JAX's events: it looks for a program, has found it, or has compiled it.
_REQUEST = '/jax/compilation_cache/compile_requests_use_cache'
_HIT = '/jax/compilation_cache/cache_hits'
_COMPILED = '/jax/core/compile/backend_compile_duration'


def use() -> None:
  """Read compiled programs from disk, and write new ones there.

  A directory that the user gave to JAX, by JAX_COMPILATION_CACHE_DIR, is used
  as it is. If no directory can be used, one line says why.
  """
  _hide_false_errors()
  # A program that cannot be read is compiled, and one that cannot be written is
  # not needed. JAX's warnings would print code.
  warnings.filterwarnings(
    'ignore', r'Error (reading|writing) persistent compilation cache entry'
  )
  if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
    return
  try:
    directory = prepare(root())
  except (OSError, RuntimeError) as error:
    why = getattr(error, 'strerror', None) or error
    messages.warn(
      f'compiled programs are not kept ({why}); set XDG_CACHE_HOME to a '
      'directory that can be written, or pass --nocompilation_cache'
    )
    return
  jax.config.update('jax_compilation_cache_dir', str(directory))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_SECONDS)
  # The files of XLA's own caches, for GPUs, would escape the limits.
  jax.config.update('jax_persistent_cache_enable_xla_caches', '')


def turn_off() -> None:
  """Compile every program, also if the user gave JAX a directory."""
  jax.config.update('jax_enable_compilation_cache', False)


def root() -> pathlib.Path:
  """Return the directory of the programs for all kinds of machines.

  Raises:
    RuntimeError: if the user has no home directory.
  """
  caches = os.environ.get('XDG_CACHE_HOME', '')
  if os.path.isabs(caches):  # others are to be ignored, by the specification
    base = pathlib.Path(caches)
  else:
    base = pathlib.Path.home() / '.cache'
  return base / 'prsgd_jax' / 'programs'


def prepare(programs: pathlib.Path) -> pathlib.Path:
  """Make the directory of this kind of machine, and tidy all of them.

  Args:
    programs: directory of the programs for all kinds of machines.

  Returns:
    The directory for this kind of machine.

  Raises:
    OSError: if it cannot be made, or another user can write to it.
  """
  directory = programs / machine()
  directory.mkdir(mode=0o700, parents=True, exist_ok=True)
  found = directory.stat()
  own = found.st_uid == os.getuid()
  if not own or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    # Programs are code, which this process would run.
    raise OSError(0, f'another user can write to {directory}')
  _remove_damaged(directory)
  _remove_oldest(programs)
  return directory


def machine(cpuinfo: str = '/proc/cpuinfo') -> str:
  """Return the name of this kind of machine.

  Machines of one name run each other's programs, with equal results.

  Args:
    cpuinfo: file of Linux that describes the CPUs.
  """
  facts = [platform.machine(), str(_num_cpus())]
  try:
    info = pathlib.Path(cpuinfo).read_text()
  except OSError:
    # Without a list of features, only one machine is known to be like this one.
    facts += [platform.platform(), platform.node()]
  else:
    facts += sorted(set(_FACTS.findall(info)))
  digest = hashlib.sha256('\n'.join(facts).encode()).hexdigest()[:16]
  return f'jaxlib-{jaxlib.version.__version__}-{digest}'


def _num_cpus() -> int:
  """Return the number of CPUs of this process, for which XLA compiles."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _remove_damaged(directory: pathlib.Path) -> None:
  """Remove programs that were not written completely.

  A kill or a full disk may leave half a program, which JAX would neither use
  nor replace. Only those written since the last check are read.
  """
  checked = directory / _CHECKED
  try:
    since = checked.stat().st_mtime if checked.exists() else 0.0
    checked.touch()
  except OSError:
    return  # a read-only or full disk
  for path in directory.glob(_PROGRAMS):
    try:
      if path.stat().st_mtime >= since and _is_damaged(path.read_bytes()):
        path.unlink()
    except OSError:
      continue  # another process removed it


def _is_damaged(program: bytes) -> bool:
  """Whether a program is incomplete, by its checksum."""
  if program.startswith(_ZSTANDARD):
    return False  # it knows its length, and JAX compresses by it if it can
  try:
    zlib.decompress(program)
  except zlib.error:
    return True
  return False


def _remove_oldest(programs: pathlib.Path) -> None:
  """Remove the programs whose last use is the longest ago, beyond the limits.

  JAX's own limit needs a package and a lock, and JAX 0.10 gives up on it for
  good after a process was killed while it wrote.
  """
  found = []
  for path in programs.glob(f'*/{_PROGRAMS}'):
    try:
      status = path.stat()
    except OSError:
      continue
    last_use = max(status.st_atime, status.st_mtime)
    found.append((last_use, status.st_size, path))
  size, count = sum(entry[1] for entry in found), len(found)
  for _, own, path in sorted(found):
    if size <= KEPT_BYTES and count <= KEPT_PROGRAMS:
      return
    try:
      path.unlink(missing_ok=True)
    except OSError:
      return  # a read-only disk
    size, count = size - own, count - 1


@functools.cache  # because a program of several runs needs it once
def _hide_false_errors() -> None:
  """Hide what XLA prints when it reads a program that fits this machine.

  Before JAX 0.12 it takes two preferences of the compiler (prefer-no-gather,
  prefer-no-scatter) for features that the CPU lacks, and prints kilobytes for
  each program as errors. Errors are hidden only while JAX looks for a program
  and, if it finds none, compiles it; fatal ones never.
  """
  if jax.version.__version_info__ >= (0, 12):
    return
  from jaxlib import utils

  level = os.environ.get('TF_CPP_MIN_LOG_LEVEL', '')
  usual = int(level) if level.isdecimal() else _LOG_LEVEL

  def on_event(event: str, **settings: str | int) -> None:
    del settings
    if event in (_REQUEST, _HIT):
      utils.absl_set_min_log_level(_FATAL if event == _REQUEST else usual)

  def on_duration(
    event: str, duration_secs: float, **settings: str | int
  ) -> None:
    del duration_secs, settings
    if event == _COMPILED:
      utils.absl_set_min_log_level(usual)

  jax.monitoring.register_event_listener(on_event)
  jax.monitoring.register_event_duration_secs_listener(on_duration)
