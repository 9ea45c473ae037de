"""The table of the measurements, from the file of results only."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from experiments.gpu.cases import Case
from experiments.running.records import writing
from experiments.tools import tables
from experiments.tools.tables import Column

PEAKS = 'limits of the device'
_GIGA, _TERA, _MEBI = 1e9, 1e12, 2**20


def shares(
  found: Mapping[str, Any], case: Case, peaks: Mapping[str, Any]
) -> tuple[float, float | None]:
  """Return which parts of the two limits of the device a loop reaches.

  No program can reach more than 1 of either, so the examples per second at the
  limit are those measured, divided by the larger share.

  Args:
    found: result of the case.
    case: the case.
    peaks: result of `peaks.measure`.

  Returns:
    The operations per second as a share of the peak of the type, and the bytes
    per second as a share of the bandwidth, None if the bytes are unknown.
  """
  seconds = found['step_seconds']
  operations = found['flops'] / seconds / peaks[case.dtype]
  moved = found.get('bytes_per_step', math.nan)
  if math.isnan(moved):  # because the platform does not count them
    return operations, None
  return operations, moved / seconds / peaks['bandwidth']


def rows(
  results: Mapping[str, Any], cases: Sequence[Case]
) -> list[dict[str, Any]]:
  """Return a row for each measured case."""
  done = results['done']
  peaks = done.get(PEAKS)
  return [
    _row(done[case.name], case, peaks) for case in cases if case.name in done
  ]


def _row(
  found: Mapping[str, Any], case: Case, peaks: Mapping[str, Any] | None
) -> dict[str, Any]:
  named = {
    **case._asdict(),
    'replicas': f'{case.num_replicas} x {case.batch_size}',
  }
  if 'failed' in found:
    return {**named, 'rate': 'failed'}
  found = writing.with_nan(found)
  examples = case.num_replicas * case.batch_size
  rate = examples / found['step_seconds']
  low, high = (examples / s for s in reversed(found['quartiles']))
  row = {
    **named,
    'step': f'{1e3 * found["step_seconds"]:.3g}',
    'rate': f'{rate:.4g} ({low:.4g} to {high:.4g})',
    'first': f'{found["seconds_to_first_step"]:.1f}',
    'flops': f'{found["flops"] / found["step_seconds"] / _TERA:.3g}',
  }
  if 'memory' in found:
    row['memory'] = f'{found["memory"] / _MEBI:.0f}'
  if peaks and 'failed' not in peaks:
    operations, moved = shares(found, case, peaks)
    row['share'] = f'{operations:.1%}'
    row['bandwidth'] = '' if moved is None else f'{moved:.1%}'
  return row


COLUMNS = (
  Column('model'),
  Column('dtype', 'type'),
  Column('replicas', 'replicas x batch', is_number=True),
  Column('way', 'way'),
  Column('num_steps', 'steps per dispatch', is_number=True),
  Column('rate', 'examples/s (quartiles)', is_number=True),
  Column('share', 'of peak operations', is_number=True),
  Column('bandwidth', 'of bandwidth', is_number=True),
  Column('step', 'step, ms', is_number=True),
  Column('flops', 'TFLOP/s', is_number=True),
  Column('first', 'first step, s', is_number=True),
  Column('memory', 'memory, MiB', is_number=True),
)
FIGURE_COLUMNS = (
  Column('run'),
  Column('model'),
  Column('steps', is_number=True),
  Column('rate', 'images/s', is_number=True),
  Column('loss', 'train loss', '{:.4f}'.format, is_number=True),
  Column('accuracy', 'test accuracy', is_number=True),
)


def page(results: Mapping[str, Any], cases: Sequence[Case]) -> str:
  """Return the results as Markdown: limits, kernels, the table, the figure.

  Args:
    results: as `store.read` returns them.
    cases: all cases, in order.
  """
  parts = [_head(results, cases)]
  if measured := rows(results, cases):
    parts.append(tables.markdown(measured, COLUMNS))
  parts += _kernels(results, cases)
  if runs := results['done'].get('figure'):
    parts.append(tables.markdown(map(_figure_row, runs), FIGURE_COLUMNS))
  return '\n'.join(parts)


def _head(results: Mapping[str, Any], cases: Sequence[Case]) -> str:
  """Return a paragraph on the device and its limits."""
  machine, done = results['machine'], results['done']
  count = sum(case.name in done for case in cases)
  words = (
    f'{count} of {len(cases)} cases are measured, on '
    f'{machine.get("device", "no device")} with JAX '
    f'{machine.get("jax", "unknown")}, commit '
    f'{machine.get("commit", "unknown")}.'
  )
  peaks = done.get(PEAKS)
  if peaks and 'failed' not in peaks:
    words += (
      f' A product of large matrices reaches {peaks["float32"] / _TERA:.3g} '
      f'TFLOP/s in float32 and {peaks["bfloat16"] / _TERA:.3g} in bfloat16, a '
      f'copy {peaks["bandwidth"] / _GIGA:.4g} GB/s.'
    )
  return words + '\n'


def _kernels(results: Mapping[str, Any], cases: Sequence[Case]) -> list[str]:
  """Return a list of the convolutions, those traced and those compiled."""
  lines, seen = [], set()
  for case in cases:
    found = results['done'].get(case.name, {})
    key = case.model, case.dtype, case.way
    if not found.get('convolutions') or key in seen:
      continue
    seen.add(key)
    lines.append(
      f'- {case.name}: traced {_counts(found["convolutions"])}; compiled '
      f'{_counts(found["layouts"]) or "to other operations"}.'
    )
  return ['Convolutions of a step:\n', *lines, ''] if lines else []


def _counts(found: Mapping[str, int]) -> str:
  return ', '.join(f'{count} x {name}' for name, count in found.items())


def _figure_row(run: Mapping[str, Any]) -> dict[str, Any]:
  accuracy = run['test_accuracy']
  return {
    **run,
    'steps': f'{run["step"]} of {run["num_steps"]}',
    'rate': f'{run["images_per_second"]:.4g}',
    'accuracy': '' if accuracy is None else f'{100 * accuracy:.1f}%',
  }
