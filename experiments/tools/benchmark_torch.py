"""Local SGD in torch, by hand and by `PeriodicModelAverager`."""

from collections.abc import Iterator
import os
from typing import Any

import numpy as np
import torch
from torch import nn
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging import averagers
from torch.nn import functional as F

from experiments.tools.benchmark_worker import Peer, Setting

# Channels and strides of the blocks of ResNet-20.
BLOCKS = [
  (width, 2 if stage > 0 and block == 0 else 1)
  for stage, width in enumerate((16, 32, 64))
  for block in range(3)
]


class Net(nn.Module):
  """A model with layers in lists, in the order in which flax counts them."""

  def __init__(self, params: dict[str, np.ndarray]):
    super().__init__()
    self.convs, self.norms, self.denses = (
      nn.ModuleList(_layers(params, kind, make))
      for kind, make in (
        ('Conv', _conv), ('BatchNorm', _norm), ('Dense', _dense),
      )
    )  # fmt: skip

  def dense(self, x: Any) -> Any:
    """Apply all dense layers, with ReLU between them."""
    for layer in self.denses[:-1]:
      x = F.relu(layer(x))
    return self.denses[-1](x)


class MLP(Net):
  def forward(self, x: Any) -> Any:
    return self.dense(x.permute(0, 2, 3, 1).flatten(1))


class LeNet5(Net):
  def forward(self, x: Any) -> Any:
    for conv in self.convs:
      x = F.max_pool2d(F.relu(conv(x)), 2)
    # The order of flax, which is the order in memory with channels last.
    return self.dense(x.permute(0, 2, 3, 1).flatten(1))


class ResNet20(Net):
  def __init__(self, params: dict[str, np.ndarray]):
    super().__init__(params)
    for i, (_, stride) in enumerate(BLOCKS):
      self.convs[2 * i + 1].stride = (stride, stride)

  def forward(self, x: Any) -> Any:
    x = F.relu(self.norms[0](self.convs[0](x)))
    for i, (channels, stride) in enumerate(BLOCKS):
      conv, norm = self.convs[2 * i + 1], self.norms[2 * i + 1]
      y = F.relu(norm(conv(x)))
      y = self.norms[2 * i + 2](self.convs[2 * i + 2](y))
      extra = channels - x.shape[1]
      shortcut = x[:, :, ::stride, ::stride]
      if extra:
        shortcut = F.pad(shortcut, (0, 0, 0, 0, extra // 2, extra - extra // 2))
      x = F.relu(y + shortcut)
    return self.dense(x.mean((2, 3)))


MODELS = {model.__name__: model for model in (MLP, LeNet5, ResNet20)}


def _layers(params: dict[str, np.ndarray], kind: str, make: Any) -> Any:
  names = {n.split('/')[0] for n in params if n.startswith(f'{kind}_')}
  for i in range(len(names)):
    start = f'{kind}_{i}/'
    own = [name for name in params if name.startswith(start)]
    yield make({name.removeprefix(start): params[name] for name in own})


def _conv(values: dict[str, np.ndarray]) -> nn.Module:
  height, width, inputs, outputs = values['kernel'].shape
  made = nn.Conv2d(
    inputs, outputs, (height, width), padding=height // 2, bias='bias' in values
  )
  return _filled(made, values, (3, 2, 0, 1))


def _norm(values: dict[str, np.ndarray]) -> nn.Module:
  return _filled(nn.BatchNorm2d(len(values['scale'])), values, (0,))


def _dense(values: dict[str, np.ndarray]) -> nn.Module:
  return _filled(nn.Linear(*values['kernel'].shape), values, (1, 0))


def _filled(layer: Any, values: dict[str, np.ndarray], axes: Any) -> nn.Module:
  """Set the parameters of a layer; `axes` are those of its weight in flax."""
  for name, value in values.items():
    if name == 'bias':
      layer.bias.data = torch.tensor(value)
    else:
      layer.weight.data = torch.tensor(value.transpose(axes).copy())
  return layer


def _to_flax(model: Net) -> dict[str, np.ndarray]:
  """Return the parameters, named and shaped as in flax."""
  found = {}
  for kind, weight, layers, axes in (
    ('Conv', 'kernel', model.convs, (2, 3, 1, 0)),
    ('BatchNorm', 'scale', model.norms, (0,)),
    ('Dense', 'kernel', model.denses, (1, 0)),
  ):
    for i, layer in enumerate(layers):
      array = layer.weight.detach().numpy()
      found[f'{kind}_{i}/{weight}'] = array.transpose(axes)
      if layer.bias is not None:
        found[f'{kind}_{i}/bias'] = layer.bias.detach().numpy()
  return found


def _made(setting: Setting) -> Any:
  """Return a model and its optimizer."""
  options = setting.options
  model = MODELS[options['model']](setting.params)
  model = model.to(memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(
    model.parameters(),
    lr=options['learning_rate'],
    momentum=options['momentum'],
  )
  return model, optimizer


def _batches(setting: Setting, replica: int) -> Iterator[Any]:
  """Yield the batches of a replica, without end."""
  image = torch.tensor(setting.data['image']).permute(0, 3, 1, 2)
  image = image.contiguous(memory_format=torch.channels_last)
  label = torch.tensor(setting.data['label'].astype(np.int64))
  rows = torch.tensor(setting.data['rows'][:, replica].astype(np.int64))
  while True:
    for batch in rows:
      yield image[batch], label[batch]


def _train(model: Any, optimizer: Any, batch: Any) -> Any:
  """Take a step, and return the loss."""
  image, label = batch
  optimizer.zero_grad()
  loss = F.cross_entropy(model(image), label)
  loss.backward()
  optimizer.step()
  return loss.detach()


def local_sgd(setting: Setting) -> Peer:
  """Train all replicas in turn, with all threads for each of them."""
  options = setting.options
  torch.set_num_threads(os.cpu_count() or 1)
  made = [_made(setting) for _ in range(options['replicas'])]
  batches = [_batches(setting, i) for i in range(options['replicas'])]
  models = [model for model, _ in made]
  done = 0

  @torch.no_grad()
  def average() -> None:
    for same in zip(*(model.parameters() for model in models)):
      mean = torch.stack(same).mean(0)
      for x in same:
        x.copy_(mean)

  def run(steps: int) -> float:
    nonlocal done
    for _ in range(steps):
      losses = [
        _train(model, optimizer, next(own))
        for (model, optimizer), own in zip(made, batches)
      ]
      done += 1
      if done % options['period'] == 0:
        average()
    return float(torch.stack(losses).mean())

  return Peer(1, run, lambda: _mean([_to_flax(model) for model in models]))


def _mean(found: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {name: np.mean([one[name] for one in found], 0) for name in found[0]}


def averager(setting: Setting) -> Peer:
  """Train one replica in this process, and average over all processes."""
  options = setting.options
  torch.set_num_threads(1)
  dist.init_process_group(
    'gloo',
    init_method=f'file://{setting.directory / "meeting"}',
    rank=setting.rank,
    world_size=options['replicas'],
  )
  model, optimizer = _made(setting)
  batches = _batches(setting, setting.rank)
  compiled, note = _compiled(model, next(_batches(setting, setting.rank)))
  mean = averagers.PeriodicModelAverager(
    # Otherwise, it averages after step 1, 9, ...
    period=options['period'], warmup_steps=options['period'] - 1
  )  # fmt: skip

  def run(steps: int) -> float:
    for _ in range(steps):
      loss = _train(compiled, optimizer, next(batches))
      mean.average_parameters(model.parameters())
    return float(loss)

  return Peer(1, run, lambda: _to_flax(model), note)


def _compiled(model: Any, batch: Any) -> tuple[Any, str]:
  """Return the compiled model, and words if it could not be compiled."""
  kept = {name: x.clone() for name, x in model.state_dict().items()}
  try:
    compiled = torch.compile(model)
    F.cross_entropy(compiled(batch[0]), batch[1]).backward()
  except Exception as error:  # of the compiler, of any kind
    print(error)
    return model, ' (not compiled, because torch.compile failed)'
  model.zero_grad()
  model.load_state_dict(kept)  # the statistics of batches
  return compiled, ' and torch.compile'
