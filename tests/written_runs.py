"""Directories of runs, written without running anything."""

import json

from experiments.running.records import records

# What a summary has besides the last record.
_REST = {
  'test_accuracy': 0.5, 'test_loss': 0.5, 'consensus_distance': 0.0,
  'steps_per_second': None, 'replicas': '8 replicas on 1 device',
  'device': 'cpu', 'cpus': 2, 'jax': '0.10.1', 'commit': 'abc',
}  # fmt: skip


def write(
  root, name, *, label='ssgd', seed=0, losses=(), failed=None, **description
):
  """A run of `log_every` 10, with test accuracy in every second record.

  It sends 1 MiB a step and models half a second for each.
  """
  workdir = root / name
  description = {
    'algorithm': label.split()[0], 'options': {}, 'seed': seed, 'data': 'ab',
    'learning_rate': 0.1, 'network': {'links': {'global': [0.1, 1e9]}},
    **description,
  }  # fmt: skip
  records.open_workdir(
    workdir, description, {}, label=label,
    num_steps=10 * len(losses) or 99, resume=False,
  )  # fmt: skip
  made = []
  for i, loss in enumerate(losses):
    step = 10 * (i + 1)
    record = {
      'step': step, 'epoch': step / 100, 'loss': loss, 'rounds': step,
      'bytes_sent': step * 2**20, 'modeled_seconds': step / 2,
      'seconds': float(step),
    }  # fmt: skip
    if i % 2:
      record |= {
        'test_accuracy': 1 - loss, 'test_loss': loss,
        'consensus_distance': 0.0,
      }  # fmt: skip
    made.append(record)
  lines = [json.dumps(record) + '\n' for record in made]
  (workdir / records.METRICS).write_text(''.join(lines))
  if failed is not None:
    records.write_failure(workdir, {'step': 7, 'failed': failed})
  elif made:
    records.write_summary(workdir, {'label': label, **_REST, **made[-1]})
  return workdir
