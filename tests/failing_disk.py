"""Disks that refuse: real limits, and system calls that fail for one file."""

import builtins
import contextlib
import errno
import io
import os
import resource
from unittest import mock


@contextlib.contextmanager
def limit(num_bytes):
  """No file may become larger; also those that C++ writes (EFBIG)."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def refuse(call, part, number=errno.EIO):
  """One system call fails for the paths with this part in their name.

  Args:
    call: 'open' for writing, 'fsync', 'replace' or 'mkdir'.
    part: of the path.
    number: the error.
  """

  def refused(path):
    if part in str(path):
      raise OSError(number, os.strerror(number), str(path))

  open_file, fsync = io.open, os.fsync
  replace, mkdir = os.replace, os.mkdir

  def open_(path, mode='r', *args, **kwargs):
    if set(mode) & set('wax'):
      refused(path)
    return open_file(path, mode, *args, **kwargs)

  def fsync_(descriptor):
    refused(os.readlink(f'/proc/self/fd/{descriptor}'))
    fsync(descriptor)

  def replace_(source, target):
    refused(target)
    replace(source, target)

  def mkdir_(path, *args, **kwargs):
    refused(path)
    mkdir(path, *args, **kwargs)

  patches = {
    'open': [(io, 'open', open_), (builtins, 'open', open_)],
    'fsync': [(os, 'fsync', fsync_)],
    'replace': [(os, 'replace', replace_)],
    'mkdir': [(os, 'mkdir', mkdir_)],
  }[call]
  with contextlib.ExitStack() as stack:
    for owner, name, function in patches:
      stack.enter_context(mock.patch.object(owner, name, function))
    yield


@contextlib.contextmanager
def fault(name, part):
  """One of `FAULTS`; yields the words of the system."""
  if name == 'limit':
    with limit(1):
      yield os.strerror(errno.EFBIG)
  else:
    number = errno.ENOSPC if name == 'fsync' else errno.EIO
    with refuse(name, part, number):
      yield os.strerror(number)


FAULTS = ('open', 'limit', 'fsync', 'replace')
