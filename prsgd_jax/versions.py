"""What is installed, on one line."""

import importlib.metadata
import platform

import jax


def line() -> str:
  """Returns the versions of the project, of JAX and of Python."""
  try:
    version = importlib.metadata.version('prsgd_jax')
  except importlib.metadata.PackageNotFoundError:
    version = '(not installed)'
  return (
    f'prsgd_jax {version}, JAX {jax.__version__}, Python '
    f'{platform.python_version()}'
  )
