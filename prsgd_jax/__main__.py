"""Print the installed versions, the devices, and how to begin.

python -m prsgd_jax
"""

import os
import sys
import textwrap

import jax

import prsgd_jax as pr
from prsgd_jax import algorithms, versions


def main() -> None:
  devices = jax.devices()
  names = textwrap.fill(
    ', '.join(algorithms.__all__),
    79,
    initial_indent='  ',
    subsequent_indent='  ',
  )
  summary = (pr.__doc__ or '').partition('\n')[0]
  print(
    f'{versions.line()}\n{summary}\n'
    f'Devices: {len(devices)} x {devices[0].device_kind}\n\n'
    f'Algorithms, each a function of an optax optimizer:\n{names}\n\n'
    'To train, in a clone of the project:\n'
    '  python experiments/train.py\n'
    '  python experiments/train.py --help',
    flush=True,
  )


if __name__ == '__main__':
  try:
    main()
  except BrokenPipeError:  # from `python -m prsgd_jax | head`
    # Redirect stdout, because Python flushes it once more at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
