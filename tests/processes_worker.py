"""One process of a group that runs rows of the law table.

`process_groups` starts it. It writes one file for each row, and one with the
errors of placements that are refused.
"""

import argparse
import json
import os
import pathlib
import sys
import time
import traceback

import jax
import numpy as np

# Rows after which compiled programs are dropped, see `conftest`.
MANY_ROWS = 16
MAPS = ('pmap', 'shard_map')


def names(text):
  return text.split(',') if text else []


def parse():
  parser = argparse.ArgumentParser()
  parser.add_argument('--process', type=int, required=True)
  parser.add_argument('--processes', type=int, required=True)
  parser.add_argument('--devices', type=int, required=True)
  parser.add_argument('--port', type=int, required=True)
  parser.add_argument('--output', type=pathlib.Path, required=True)
  for map_by in MAPS:  # the rows that are mapped so
    parser.add_argument(f'--{map_by}', type=names, default=[])
  parser.add_argument('--saved', type=names, default=[])
  parser.add_argument('--read', type=names, default=[])
  parser.add_argument('--refused', action='store_true')
  return parser.parse_args()


def start(flags):
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', flags.devices)
  jax.config.update('jax_enable_x64', True)
  if flags.processes > 1:
    jax.distributed.initialize(
      f'localhost:{flags.port}', flags.processes, flags.process
    )


def work(flags):
  # Not before, because the table makes arrays, and arrays make the devices.
  from tests import observed_rows, refused_placements

  if flags.refused:
    path = flags.output / f'refused.{flags.process}.json'
    path.write_text(json.dumps(refused_placements.refused()))
  rows = [(by, row) for by in MAPS for row in getattr(flags, by)]
  for number, (map_by, row) in enumerate(rows, start=1):
    begun, output = time.monotonic(), flags.output / map_by
    seen = observed_rows.observe(
      row,
      map_by=map_by,
      directory=output / 'states' / row if row in flags.saved else None,
      read=row in flags.read,
      lower=flags.processes == 1,
    )
    output.mkdir(exist_ok=True)
    np.savez(output / f'{row}.{flags.process}.npz', **seen)
    print(f'{row} by {map_by} {time.monotonic() - begun:.1f} s', flush=True)
    if number % MANY_ROWS == 0:
      jax.clear_caches()


def main():
  flags = parse()
  start(flags)
  try:
    work(flags)
  except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
    # Not by an exit, because that would wait for the other processes.
    os._exit(1)


if __name__ == '__main__':
  main()
