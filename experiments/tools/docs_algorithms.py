"""Write the generated parts of the documentation's pages of algorithms.

  python experiments/tools/docs_algorithms.py

The prose in docs/algorithms/ is written by hand. Between the marks of a page
are its figure and what it costs by the ledger; between those of index.md is the
table of all algorithms. Costs and training losses are kept in
figures/data.json. With --rerun the presets run again, for a quarter of an hour.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

from collections.abc import Mapping, Sequence
import json
import subprocess
from typing import Any

from absl import flags
import numpy as np

from experiments.running.flags import cli
from experiments.running.records import records, writing
from experiments.tools import docs_costs, docs_figures, readme, tables
from experiments.tools.docs_costs import Message
from experiments.tools.tables import Column
import prsgd_jax as pr

FLAGS = flags.FLAGS
Entries = tuple[pr.base.Work | pr.base.Traffic, ...]

flags.adopt_module_key_flags(cli)
flags.DEFINE_bool('rerun', False, 'Run the presets again for the losses.')

HERE = pathlib.Path(__file__).parents[1]
PAGES = HERE.parent / 'docs' / 'algorithms'
DATA = PAGES / 'figures' / 'data.json'
# Headings of the tables of costs, and of the algorithms.
MESSAGES = (
  'message to',
  'rounds per step',
  'bytes per round',
  'models per round',
)
MESSAGE_COLUMNS = [Column(t, is_number=t != 'message to') for t in MESSAGES]
INDEX = ('algorithm', 'what it does', 'paper', 'bytes')
# Steps of the left panel.
SHOWN_STEPS = 12
# Its settings, where the preset's do nothing in these few steps.
SHOWN: dict[str, Mapping[str, str]] = {
  'pr_sgd_heterogeneous': {'local_steps': '1+1+1+1+2+2+4+4'},
  'fednova': {'local_steps': '1+1+1+1+2+2+4+4'},
  'wp_sgd': {'local_steps': '1+1+1+1+2+2+4+4'},
  'decoupled_diloco': {'local_steps': '4+4+4+2+2+4+1+4'},
  'post_local_sgd': {'switch_step': '4', 'period': '4'},
  'hier_avg': {'global_period': '4'},
  'multi_level_avg': {'periods': '1+2+4'},
  'hierarchical_local_sgd': {
    'switch_step': '4', 'period': '2', 'block_steps': '2'
  },
  'des_loc': {
    'period': '2', 'first_moment_period': '6', 'second_moment_period': '12'
  },
  'delayed_nesterov': {'period': '2'},
  'streaming_diloco': {'period': '4', 'delay': '1'},
  'palsgd': {'period': '4', 'probability': '0.25'},
}  # fmt: skip
# The period of all others that have one.
SHOWN_PERIOD = '4'
# SSGD on unlike data, with which presets on such data are compared.
DIRICHLET = 'digits_ssgd_dirichlet'
KINDS = {'all': 'all replicas', 'group': 'group', 'neighbors': 'neighbors'}
LINES = {
  'all': 'A blue bar is a message to all replicas.',
  'group': 'An orange bar is a message inside a group.',
  'neighbors': 'A green line is a message to a neighbor.',
}


def main() -> None:
  with cli.one_line_errors(ValueError):
    losses = _train_all() if FLAGS.rerun else read_data()['losses']
    shown = {name: _shown_entries(name) for name in readme.names()}
    data = {
      'costs': {n: docs_costs.to_json(docs_costs.messages(n)) for n in shown},
      'captions': {name: _explain(entries) for name, entries in shown.items()},
      'losses': losses,
    }
    writing.write_text(DATA, writing.to_json(data))
    for name, entries in shown.items():
      _draw(name, entries, losses)
      page = PAGES / f'{name}.md'
      writing.write_text(page, with_blocks(name, page.read_text(), data))
    index = PAGES / 'index.md'
    writing.write_text(index, with_index(index.read_text(), data))


def read_data() -> dict[str, Any]:
  """Return the kept costs, sentences on the figures, and training losses."""
  return json.loads(DATA.read_text())


def _shown_entries(name: str) -> Entries:
  return docs_costs.entries(name, shown_settings(name), SHOWN_STEPS)


def shown_settings(name: str) -> dict[str, str]:
  """Return the algorithm's own settings in the left panel."""
  own = docs_costs.own_settings(name)
  changed = SHOWN.get(name, {'period': SHOWN_PERIOD})
  return {flag: changed.get(flag, value) for flag, value in own.items()}


def _draw(
  name: str,
  entries: Entries,
  losses: Mapping[str, Mapping[str, list[float]]],
) -> None:
  curves = {name: docs_costs.preset(name)}
  if name != 'ssgd':
    curves['ssgd'] = _reference(name)
  drawn = [
    docs_figures.Curve(label, losses[run]['step'], losses[run]['loss'])
    for label, run in curves.items()
  ]
  path = PAGES / 'figures' / f'{name}.svg'
  docs_figures.draw(path, entries, docs_costs.NUM_REPLICAS, drawn)


def _reference(name: str) -> str:
  unlike = docs_costs.settings(name).get('partition') == 'dirichlet'
  return DIRICHLET if unlike else 'digits_ssgd'


def _train_all() -> dict[str, dict[str, list[float]]]:
  presets = {docs_costs.preset(name) for name in readme.names()}
  return {name: _train(name) for name in sorted({*presets, DIRICHLET})}


def _train(run: str) -> dict[str, list[float]]:
  """Return steps and training losses of a preset, which runs unless it did.

  Raises:
    ValueError: if it does not end.
  """
  workdir = pathlib.Path(FLAGS.workdir or 'runs/docs') / run
  preset = 'digits_ssgd' if run == DIRICHLET else run
  command = [
    sys.executable, str(HERE / 'train.py'), '--seed=0', '--log_every=20',
    '--eval_every=600', f'--workdir={workdir}',
    f'--flagfile={docs_costs.PRESETS / preset}.flags',
  ]  # fmt: skip
  if run == DIRICHLET:
    command += ['--partition=dirichlet', '--dirichlet_alpha=0.5']
  if FLAGS.data_dir is not None:
    command.append(f'--data_dir={FLAGS.data_dir}')
  metrics = workdir / records.METRICS
  if not metrics.exists() and subprocess.run(command, check=False).returncode:
    raise ValueError(f'{run} did not end; see above')
  read = [json.loads(line) for line in metrics.read_text().splitlines()]
  return {
    'step': [each['step'] for each in read],
    'loss': [float(f'{each["loss"]:.3g}') for each in read],
  }


def with_blocks(name: str, text: str, data: Mapping[str, Any]) -> str:
  """Return the page of an algorithm with its generated parts written again.

  Args:
    name: of the algorithm.
    text: of the page.
    data: as kept.

  Raises:
    ValueError: if the page has no marks for them.
  """
  figure = _format_figure(name, data['captions'][name])
  text = _between(text, 'figure', figure)
  return _between(text, 'cost', _format_costs(name, _costs(data)))


def with_index(text: str, data: Mapping[str, Any]) -> str:
  """Return the index of the algorithms with its table written again."""
  return _between(text, 'table', _format_index(_costs(data)))


def _costs(data: Mapping[str, Any]) -> dict[str, list[Message]]:
  return {n: docs_costs.from_json(kept) for n, kept in data['costs'].items()}


def _between(text: str, mark: str, inside: str) -> str:
  begin, end = f'<!-- {mark}: begin -->\n', f'<!-- {mark}: end -->\n'
  before, found, rest = text.partition(begin)
  _, ended, after = rest.partition(end)
  if not found or not ended:
    raise ValueError(
      f'a page needs the lines {begin.strip()} and {end.strip()}'
    )
  return f'{before}{begin}\n{inside}\n{end}{after}'


def _format_figure(name: str, sentences: Sequence[str]) -> str:
  """Return the figure and its caption."""
  shown, own = shown_settings(name), docs_costs.own_settings(name)
  changed = {k: v for k, v in shown.items() if own[k] != v}
  with_changed = f', with {_format_options(changed)}' if changed else ''
  words = [
    f'![Messages of {name} by step and replica, and its training loss]'
    f'(figures/{name}.svg)\n',
    f'*Left:* gradients and messages of a run of {SHOWN_STEPS} steps'
    f'{with_changed}.',
    *sentences,
    f'*Right:* training loss of the preset `{docs_costs.preset(name)}`, one '
    'seed.',
  ]
  if name != 'ssgd':
    words.append('Gray is the preset `digits_ssgd` on the same data.')
  return '\n'.join(words) + '\n'


def _explain(entries: Entries) -> list[str]:
  """Return a sentence for each kind of mark in the left panel."""
  work = [e.active for e in entries if isinstance(e, pr.base.Work)]
  sent = [e for e in entries if isinstance(e, pr.base.Traffic) and e.bytes_sent]
  drawn = [e for e in sent if e.fires is not None and e.fires.any()]
  kinds = {docs_costs.kind(e) for e in drawn}
  late = any(map(docs_figures.is_late, drawn))
  return [
    *(text for kind, text in LINES.items() if kind in kinds),
    *['Nobody waits for dashed messages.'] * late,
    *['Open dots take no gradient.'] * (not np.any(work, axis=0).all()),
    *['Data-dependent averages are not shown.']
    * any(e.fires is None for e in sent),
    *['The replicas send nothing.'] * (not sent),
  ]


def _format_options(options: Mapping[str, str]) -> str:
  return ', '.join(f'`{flag}={value}`' for flag, value in options.items())


def _format_costs(name: str, costs: Mapping[str, list[Message]]) -> str:
  """Return a table of the messages of a step, as the ledger counts them."""
  own = docs_costs.own_settings(name)
  with_own = f' ({_format_options(own)})' if own else ''
  sent, most = (docs_costs.bytes_per_step(costs[n]) for n in (name, 'ssgd'))
  none = dict(zip(MESSAGES, ('none', '0', '0', '0'), strict=True))
  rows = [_format_message(sent) for sent in costs[name]] or [none]
  decided = any(each.rounds is None for each in costs[name])
  besides = 'Besides the data-dependent rounds, this' if decided else 'This'
  return (
    f'Each of {docs_costs.NUM_REPLICAS} replicas sends, for a million float32 '
    f'parameters and the settings of the preset{with_own}:\n\n'
    f'{tables.markdown(rows, MESSAGE_COLUMNS)}\n'
    f'{besides} is {format_size(sent)} per step, '
    f'{_format_share(sent / most)} of the {format_size(most)} of synchronous '
    'SGD.\n'
  )


def _format_message(sent: Message) -> dict[str, str]:
  models = sent.bytes_sent / docs_costs.MODEL_BYTES
  cells = (
    KINDS[sent.kind],
    'data-dependent'
    if sent.rounds is None
    else f'{sent.rounds / docs_costs.NUM_STEPS:.3g}',
    format_size(sent.bytes_sent),
    f'{models:.3g}' if models >= 1e-3 else '< 0.001',
  )
  return dict(zip(MESSAGES, cells, strict=True))


def format_size(size: float) -> str:
  """Return bytes in units of a thousand.

  Example:
    >>> format_size(7e6), format_size(0)
    ('7 MB', '0 bytes')
  """
  for unit, scale in (('MB', 1e6), ('kB', 1e3)):
    if size >= scale:
      return f'{size / scale:.3g} {unit}'
  return f'{size:.3g} bytes'


def _format_share(share: float) -> str:
  if 0 < share < 1e-3:
    return 'less than 0.1%'
  return f'{share:.0%}' if share >= 0.1 else f'{100 * share:.1g}%'


def _format_index(costs: Mapping[str, list[Message]]) -> str:
  """Return a table for each family, and the tree of the pages."""
  most = docs_costs.bytes_per_step(costs['ssgd'])
  families: dict[str, list[dict[str, str]]] = {}
  for name in readme.names():
    share = _format_share(docs_costs.bytes_per_step(costs[name]) / most)
    if any(each.rounds is None for each in costs[name]):
      share = 'data-dependent'
    cells = (readme.link(name), readme.summary(name), readme.paper(name), share)
    row = dict(zip(INDEX, cells, strict=True))
    families.setdefault(readme.family(name), []).append(row)
  columns = [Column(title, is_number=title == 'bytes') for title in INDEX]
  listed = [
    f'## {title}\n\n{tables.markdown(rows, columns)}'
    for title, rows in families.items()
  ]
  tree = '\n'.join(readme.names())
  return '\n'.join(listed) + f'\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n'


if __name__ == '__main__':
  cli.run(main)
