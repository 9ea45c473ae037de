"""Installed versions, on one line."""

import importlib.metadata
import platform

import jax


def line() -> str:
  """Return the versions of prsgd_jax, JAX and Python as one line."""
  try:
    version = importlib.metadata.version('prsgd_jax')
  except importlib.metadata.PackageNotFoundError:
    version = '(not installed)'
  return (
    f'prsgd_jax {version}, JAX {jax.__version__}, Python '
    f'{platform.python_version()}'
  )
