"""Write TensorBoard's event files directly, without a thread.

tensorboardX's writers pass events to a thread. If the disk is full, the thread
dies, its queue fills up, and the program waits forever. Here each record is one
write, so that a full disk raises an error.
"""

import os
import platform
import struct
import time

from tensorboardX import record_writer, summary
from tensorboardX.proto import event_pb2, summary_pb2

from experiments.running.logs import loggers
from experiments.running.records import records, writing

DIRECTORY = 'tensorboard'
# Measures that TensorBoard's table of hyperparameters shows.
MEASURES = ('test/accuracy', 'test/loss', 'train/loss', 'comm/bytes_sent')
_COMMUNICATION = (
  'rounds',
  'bytes_sent',
  'modeled_seconds',
  'consensus_distance',
)


def tensorboard(run: loggers.Run) -> loggers.Logger:
  """Return a logger that writes the flags and records as TensorBoard events.

  The file of a resumed run starts with an event that makes TensorBoard drop
  later points, because the run writes these again.

  Args:
    run: run that starts or resumes.

  Raises:
    WriteError: if the events cannot be written, now or by `write`.
  """
  directory = (run.workdir / DIRECTORY).absolute()
  with writing.reported(directory):
    directory.mkdir(exist_ok=True)
    first = not any(directory.iterdir()) or run.start == 0
    path = directory / _file_name(run)
    file = open(path, 'ab', buffering=0)  # noqa: SIM115

  def put(event: event_pb2.Event) -> None:
    event.wall_time = time.time()
    with writing.reported(path):
      writing.append(file, _framed(event.SerializeToString()))

  def write(record: records.Record) -> None:
    values = [
      summary_pb2.Summary.Value(tag=tag, simple_value=value)
      for tag, value in scalars(record).items()
    ]
    shown = summary_pb2.Summary(value=values)
    put(event_pb2.Event(step=record['step'], summary=shown))

  def close() -> None:
    with writing.reported(path):
      file.close()

  put(event_pb2.Event(file_version='brain.Event:2'))
  began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
  # TensorBoard drops points at this step or later; 0 drops all.
  again_from = run.start + 1 if run.start else 0
  put(event_pb2.Event(step=again_from, session_log=began))
  if first:
    for shown in _described(run):
      put(event_pb2.Event(summary=shown))
  return loggers.Logger(write, close)


def scalars(record: records.Record) -> dict[str, float]:
  """Return the numbers of a record by tag; TensorBoard groups tags by prefix.

  Example:
    >>> scalars({'step': 5, 'loss': 0.5, 'test_loss': 1.0, 'rounds': 2})
    {'train/loss': 0.5, 'test/loss': 1.0, 'comm/rounds': 2}
    >>> scalars({'bytes_by_tier': {'group': 96.0}})
    {'comm/bytes_sent/group': 96.0}
  """
  found: dict[str, float] = {}
  for name, value in record.items():
    if name == 'bytes_by_tier':
      found |= {f'comm/bytes_sent/{tier}': v for tier, v in value.items()}
    elif name != 'step' and isinstance(value, float | int):
      found[_tag(name)] = value
  return found


def _tag(name: str) -> str:
  if name in _COMMUNICATION:
    return f'comm/{name}'
  if name.startswith('test_'):
    return f'test/{name.removeprefix("test_")}'
  return f'train/{name}'


def _described(run: loggers.Run) -> list[summary_pb2.Summary]:
  """Return the flags as hyperparameters and as text."""
  flags = {
    name: value if isinstance(value, bool | int | float | str) else str(value)
    for name, value in run.flags.items()
    if value is not None and value != []
  }
  # As a flag file, because a bar in a name would end the cell of a table.
  lines = ''.join(f'    --{name}={value}\n' for name, value in flags.items())
  text = f'{run.label}\n\n{lines}'
  hyperparameters = summary.hparams(flags, dict.fromkeys(MEASURES, 0.0))
  return [*hyperparameters, summary.text('flags', text)]


def _file_name(run: loggers.Run) -> str:
  """Return a unique name, because a run may resume within one second."""
  place = f'{platform.node()}.{os.getpid()}.{time.time_ns() % 10**9}'
  return f'events.out.tfevents.{int(time.time())}.{place}'


def _framed(data: bytes) -> bytes:
  """Return a record of a TFRecord file: length and data, with checksums."""
  length = struct.pack('<Q', len(data))
  sums = (record_writer.masked_crc32c(x) for x in (length, data))
  first, second = (struct.pack('<I', x) for x in sums)
  return length + first + data + second
