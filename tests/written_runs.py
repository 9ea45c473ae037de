"""Directories of runs, written without running anything."""

import json

from experiments import records


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
    workdir, description, {}, label=label, num_steps=99, resume=False
  )
  made = []
  for i, loss in enumerate(losses):
    step = 10 * (i + 1)
    record = {
      'step': step, 'epoch': step / 100, 'loss': loss, 'rounds': step,
      'bytes_sent': step * 2**20, 'modelled_seconds': step / 2,
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
    records.write_summary(workdir, {'label': label, **made[-1]})
  return workdir
