"""Run every row of the law table in several processes, and compare them.

  make hosts

Not part of the tests: it takes a quarter of an hour. One process with 4
devices, 2 with 2 and 4 with 1 must give one trajectory: bit for bit where
nothing is summed, otherwise to the rounding of sums in another order. Both
functions that map over the devices must give the same bits. All processes of a
group must read the same numbers.
"""

from concurrent import futures
import pathlib
import sys
import tempfile
import time

from tests import (
  conftest,  # noqa: F401 - for cheap compilation, here too
  process_groups,
)
from tests.process_groups import PMAP, SHARD_MAP, Layout
from tests.rows import TABLE

WHOLE, *SPLIT = (Layout(1, 4), Layout(2, 2), Layout(4, 1))
# Seconds that a group may take. A row takes about one in each process.
LIMIT = 3600
# Rows of each kind of communication. Their states are saved, restored and
# continued, and on 4 processes only they are mapped in both ways.
KINDS = (
  'hier_avg', 'd_psgd_ring', 'd_psgd_matching', 'sgp_one_peer', 'qsgd', 'edit',
  'eager_diloco', 'dynamic',
)  # fmt: skip


def rows_of(layout, rows):
  """The rows of a layout by function that maps, to run and to compare."""
  few = layout.processes == 4
  also = [row for row in rows if row in KINDS] if few else rows
  return {PMAP: rows, SHARD_MAP: also}


def run(layout, rows, directory):
  """Run the rows on a layout; return its failure as lines."""
  begun = time.monotonic()
  saved = ','.join(row for row in rows if row in KINDS)
  # Of the other rows, which have other settings, only the steps are compared.
  read = ','.join(row for row in rows if TABLE[row].every_layout)
  try:
    process_groups.run(
      layout,
      directory,
      **rows_of(layout, rows),
      seconds=LIMIT,
      options=[f'--saved={saved}', f'--read={read}'],
    )
  except process_groups.GroupError as error:
    return [str(error)]
  print(f'{layout}: {time.monotonic() - begun:.0f} s', flush=True)
  return []


def differences(layout, rows, directory, whole):
  """What is not as it must be, as lines."""
  lines, asked = [], rows_of(layout, rows)
  for map_by, mapped in asked.items():
    for row in mapped:
      lines += process_groups.within(layout, directory, row, map_by)
      lines += process_groups.against_one_process(
        layout, directory, row, map_by, whole
      )
  for row in asked[SHARD_MAP]:
    lines += process_groups.between_maps(layout, directory, row)
  return lines


def check(rows, root):
  """Run and compare all layouts; return (lines, rows without sums)."""
  directories = {layout: root / str(layout) for layout in (WHOLE, *SPLIT)}
  with futures.ThreadPoolExecutor(2) as pool:  # one process leaves a core idle
    failures = pool.map(
      lambda item: run(item[0], rows, item[1]), directories.items()
    )
    lines = [line for failed in failures for line in failed]
  if lines:
    return lines, 0
  whole = {
    row: process_groups.observed(directories[WHOLE], row, PMAP) for row in rows
  }
  for layout, directory in directories.items():
    lines += differences(layout, rows, directory, whole)
  return lines, sum(bool(seen['exact']) for seen in whole.values())


def main():
  rows = sys.argv[1:] or list(TABLE)
  begun = time.monotonic()
  with tempfile.TemporaryDirectory() as directory:
    lines, exact = check(rows, pathlib.Path(directory))
  for line in lines:
    print(line)
  minutes = (time.monotonic() - begun) / 60
  print(
    f'{len(rows)} rows on 1 x 4, 2 x 2 and 4 x 1 processes x devices in '
    f'{minutes:.1f} minutes: {exact} bit for bit, {len(rows) - exact} to the '
    f'rounding of sums, {len(lines)} failures'
  )
  sys.exit(bool(lines))


if __name__ == '__main__':
  main()
