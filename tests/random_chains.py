"""Random algorithms, and an interpreter that shares no code with the library.

A chain is described by values. `build` makes stages of it, `interpret` runs the
same description on NumPy arrays of all replicas, `[N, ...]`.
"""

import copy
import functools
from typing import Any, NamedTuple

from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr

# Registers of parameters' shape that every chain remembers.
REMEMBERED = ('u', 'v')
TREES = ('params', 'grads', *REMEMBERED)
SEEN = ('params', *REMEMBERED)


class Gradient(NamedTuple):
  """Take the gradient at `params`."""


class Local(NamedTuple):
  """Take a step of SGD with momentum."""

  rate: float
  momentum: float


class Let(NamedTuple):
  """target <- a one + (1 - a) other."""

  target: str
  a: float
  one: str
  other: str


class Sync(NamedTuple):
  """Mixes registers; `mixing` is (name, number)."""

  mixing: tuple[str, Any]
  what: tuple[str, ...]


class At(NamedTuple):
  """Run the body at steps congruent to `phase`."""

  period: int
  phase: int
  body: tuple


class Where(NamedTuple):
  """Run the body on replicas with (replica + step) % modulus < less."""

  modulus: int
  less: int
  body: tuple


class IfFar(NamedTuple):
  """Run the body if a parameter of any replica is beyond a bound."""

  bound: float
  body: tuple


class Scope(NamedTuple):
  """An algorithm with a register z of its own, which follows `params`."""

  decay: float


class Case(NamedTuple):
  """A chain and the problem it runs on.

  Attributes:
    body: of descriptions; it runs after a first gradient.
    num_replicas: N.
    tree: of shapes, the parameters.
    weights: of the replicas, float[N], or None.
    seed: of the numbers of the problem.
  """

  body: tuple
  num_replicas: int
  tree: Any
  weights: tuple[float, ...] | None
  seed: int


def is_shape(node):
  """Whether a node of a tree of shapes is a shape: a list of lengths."""
  return isinstance(node, list)


# Shapes are lists, so that tuples and dicts can hold them.
SHAPES = st.sampled_from([[], [1], [3], [2, 2], [0, 2]])
TREE = st.one_of(
  SHAPES.filter(lambda shape: 0 not in shape),
  st.dictionaries(st.sampled_from('abc'), SHAPES, min_size=1).map(
    lambda d: {'w': [2], **d}
  ),
  st.tuples(st.just([2]), SHAPES, st.fixed_dictionaries({'x': SHAPES})),
)
UNIT = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])


def _mixings(n):
  stochastic = st.integers(0, 99).map(lambda seed: ('dense', seed))
  groups = [('group_mean', s) for s in range(1, n + 1) if n % s == 0]
  named = [('mean', None), ('ring', None), *groups]
  if n & (n - 1) == 0:
    named.append(('one_peer', None))
  return st.one_of(st.sampled_from(named), stochastic)


def _stages(n, sync, depth):
  """Tuples of descriptions; with `sync`, such as communicate."""
  let = st.builds(
    Let,
    st.sampled_from(('params', *REMEMBERED, 'grads')),
    UNIT,
    st.sampled_from(TREES),
    st.sampled_from(TREES),
  )
  kinds = [st.just(Gradient()), let, let, st.builds(Scope, UNIT)]
  if sync:
    what = st.lists(
      st.sampled_from((*TREES, 'opt_state')),
      min_size=1,
      max_size=3,
      unique=True,
    )
    kinds += [st.builds(Sync, _mixings(n), what.map(tuple))] * 2
  if depth:
    inner = _stages(n, sync, depth - 1)
    steps = st.tuples(st.integers(1, 4), st.integers(0, 3))
    kinds += [
      st.builds(lambda s, b: At(s[0], s[1] % s[0], b), steps, inner),
      st.builds(
        Where,
        st.integers(1, 3),
        st.integers(0, 3),
        _stages(n, False, depth - 1),
      ),
    ]
    if sync:
      # No schedules and no gradients inside, which could not be counted.
      always = _stages(n, True, 0).filter(lambda body: Gradient() not in body)
      bound = st.sampled_from([0.3, 1.0, 2.0])
      kinds.append(st.builds(IfFar, bound, always))
  return st.lists(st.one_of(kinds), min_size=1, max_size=3).map(tuple)


@st.composite
def cases(draw):
  """Draw a `Case`."""
  n = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
  local = draw(st.builds(Local, st.sampled_from([0.05, 0.3]), UNIT))
  before, after = draw(_stages(n, True, 2)), draw(_stages(n, True, 2))
  weights = draw(st.none() | st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * n))
  return Case(
    (*before, local, *after), n, draw(TREE), weights, draw(st.integers(0, 9))
  )


def matrix(mixing, n, rounds):
  """W, float64[N, N], in a round."""
  name, number = mixing
  eye, index = np.eye(n), np.arange(n)
  if name == 'mean':
    return np.full((n, n), 1 / n)
  if name == 'group_mean':
    return (index[:, None] // number == index // number) / number
  if name == 'ring':
    return (eye + np.roll(eye, 1, 0) + np.roll(eye, -1, 0)) / 3
  if name == 'one_peer':
    hops = max(n.bit_length() - 1, 1)
    return (eye + np.roll(eye, 2 ** (rounds % hops), 0)) / 2
  w = np.random.default_rng(number).dirichlet(np.ones(n), size=n)
  return w / w.sum(axis=1, keepdims=True)


def make_mixing(mixing, n):
  """The library's mixing of that name."""
  name, number = mixing
  if name == 'group_mean':
    return pr.mixing.group_mean(number)
  if name == 'dense':
    return pr.mixing.dense(matrix(mixing, n, 0))
  return {
    'mean': pr.mixing.mean,
    'ring': pr.graphs.ring,
    'one_peer': pr.graphs.one_peer_exponential,
  }[name]()


def build(case):
  """The algorithm of the library that a case describes."""
  start = [pr.remember(u='params', v=pr.zeros)]
  if case.weights is not None:
    start.append(pr.remember(weight=pr.per_replica(case.weights)))
  return pr.chain(*start, pr.gradient(), *_build(case, case.num_replicas, ''))


def _build(around, n, place):
  """The stages of a body; `place` names the scopes inside."""
  return [
    stage
    for i, item in enumerate(getattr(around, 'body', ()))
    for stage in _stages_of(item, n, f'{place}s{i}')
  ]


def _stages_of(item, n, place):
  inside = _build(item, n, place)
  match item:
    case Gradient():
      return [pr.gradient()]
    case Local(rate, momentum):
      return [pr.local_update(optax.sgd(rate, momentum=momentum))]
    case Let(target, a, one, other):

      def rule(x, y):
        return a * x + (1 - a) * y

      return [pr.let(**{target: pr.stages.reading(rule, one, other)})]
    case Sync(mixing, what):
      return [pr.sync(make_mixing(mixing, n), what)]
    case At(period, phase):
      return [pr.at(lambda step: step % period == phase, *inside)]
    case Where(modulus, less):

      def active(replica, step):
        return (replica + step) % modulus < less

      return [pr.where(active, *inside)]
    case IfFar(bound):
      far = pr.compute(far=lambda params: _reach(params) > bound)
      return [far, pr.at(pr.anyone('far'), *inside)]
    case Scope(decay):
      z = pr.let(z=lambda z, params: decay * z + (1 - decay) * params)
      pull = pr.let(params=lambda z, params: (params + z) / 2)
      return [pr.algorithm(place, pr.remember(z='params'), z, pull)]


def _reach(tree):
  largest = [abs(x).max() for x in jax.tree.leaves(tree) if x.size]
  return functools.reduce(jnp.maximum, largest)


class Problem(NamedTuple):
  """f_i(x) = sum a_i (x - b_i)^2 / 2 + noise_i x, trees of float64.

  Attributes:
    start: `[...]`.
    a, b: `[N, ...]`.
    noise: `[T, N, ...]`.
  """

  start: Any
  a: Any
  b: Any
  noise: Any


def make_problem(case, num_steps):
  """The numbers of a case."""
  rng = np.random.default_rng(case.seed)
  n = case.num_replicas

  def draw(make):
    return jax.tree.map(make, case.tree, is_leaf=is_shape)

  return Problem(
    draw(lambda s: rng.normal(size=s)),
    draw(lambda s: rng.uniform(0.2, 1.5, (n, *s))),
    draw(lambda s: rng.normal(size=(n, *s))),
    draw(lambda s: rng.normal(size=(num_steps, n, *s))),
  )


class _Machine:
  """The registers of all replicas, lists of leaves `[N, ...]`."""

  def __init__(self, case, problem):
    self.n = case.num_replicas
    self.leaves = [
      np.stack([x] * self.n) for x in jax.tree.leaves(problem.start)
    ]
    self.a, self.b, self.noise = (
      jax.tree.leaves(t) for t in (problem.a, problem.b, problem.noise)
    )
    self.registers = {
      'params': self.leaves,
      'u': self.leaves,
      'v': [0 * x for x in self.leaves],
      'opt_state': [0 * x for x in self.leaves],
    }
    weights = case.weights
    self.weight = None if weights is None else np.array(weights)
    self.rounds = {}  # of each sync, by its place in the chain
    self.z = {}
    self.gradients = 0
    self.sent = []  # (mixing, numbers) of each message

  def gradient(self, step, active):
    x = self.registers['params']
    self.registers['grads'] = [
      a * (p - b) + noise[step]
      for p, a, b, noise in zip(x, self.a, self.b, self.noise)
    ]
    self.gradients += int(active.sum())

  def run(self, body, step, place, active):
    for i, item in enumerate(body):
      self.one(item, step, (*place, i), active)

  def one(self, item, step, place, active):
    held = self.registers
    match item:
      case Gradient():
        self.gradient(step, active)
      case Local(rate, momentum):
        held['opt_state'] = [
          g + momentum * m for g, m in zip(held['grads'], held['opt_state'])
        ]
        held['params'] = [
          x - rate * m for x, m in zip(held['params'], held['opt_state'])
        ]
      case Let(target, a, one, other):
        held[target] = [
          a * x + (1 - a) * y for x, y in zip(held[one], held[other])
        ]
      case Sync(mixing, what):
        self.sync(mixing, what, place)
      case At(period, phase, body):
        if step % period == phase:
          self.run(body, step, place, active)
      case Where(modulus, less, body):
        mask = (np.arange(self.n) + step) % modulus < less
        self.masked(mask, body, step, place, active)
      case IfFar(bound, body):
        if max(abs(x).max() for x in held['params'] if x.size) > bound:
          self.run(body, step, place, active)
      case Scope(decay):
        z = self.z.get(place, self.leaves)
        z = [decay * y + (1 - decay) * x for y, x in zip(z, held['params'])]
        self.z[place] = z
        held['params'] = [(x + y) / 2 for x, y in zip(held['params'], z)]

  def masked(self, mask, body, step, place, active):
    before, z_before = dict(self.registers), copy.copy(self.z)
    self.run(body, step, place, active & mask)

    def choose(new, old):
      return [
        np.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, y)
        for x, y in zip(new, old)
      ]

    for name, new in self.registers.items():
      self.registers[name] = choose(new, before[name])
    for where, new in self.z.items():
      self.z[where] = choose(new, z_before.get(where, self.leaves))

  def sync(self, mixing, what, place):
    w = matrix(mixing, self.n, self.rounds.get(place, 0))
    self.rounds[place] = self.rounds.get(place, 0) + 1
    weight = np.ones(self.n) if self.weight is None else self.weight
    mass = w @ weight
    numbers = 0 if self.weight is None else 1
    for name in what:
      numbers += sum(x[0].size for x in self.registers[name])
      self.registers[name] = [
        (np.tensordot(w * weight, x, 1).T / mass).T
        for x in self.registers[name]
      ]
    if self.weight is not None:
      self.weight = mass
    self.sent.append((mixing, numbers))


def interpret(case, problem, num_steps):
  """Run a case: registers after each step, and the machine at the end."""
  machine = _Machine(case, problem)
  seen = []
  for step in range(num_steps):
    everybody = np.ones(machine.n, bool)
    machine.gradient(step, everybody)
    machine.run(case.body, step, (), everybody)
    seen.append(
      {name: machine.registers[name] for name in ('params', 'u', 'v')}
    )
  return seen, machine


def bytes_sent(mixing, numbers, n):
  """Bytes of a message of float64 numbers, as the ledger counts them."""
  name, size = mixing
  payload = 8 * numbers
  if name == 'mean':
    return 2 * (n - 1) / n * payload
  if name == 'group_mean':
    return 2 * (size - 1) / size * payload
  if name == 'ring':
    return min(n - 1, 2) * payload
  if name == 'one_peer':
    return min(n - 1, 1) * payload
  return (n - 1) * payload


def decides(body):
  """Whether anything in a chain depends on the data."""
  return any(
    isinstance(item, IfFar) or decides(getattr(item, 'body', ()))
    for item in body
  )
