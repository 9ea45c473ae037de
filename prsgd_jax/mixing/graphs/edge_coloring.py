"""EDGE COLORING: matchings that together cover the edges of a graph."""

import heapq
from typing import TYPE_CHECKING

import numpy as np

from prsgd_jax.mixing.collectives import partner

if TYPE_CHECKING:
  import networkx as nx

# The largest complete graph that is colored like any other graph, which takes
# two seconds. Below it, matchings must stay as they were in older runs.
MOST_COLORED = 96


def edge_colors(graph: 'nx.Graph') -> list[np.ndarray]:
  """Return matchings that cover each edge once, as int[N] of partners.

  A replica without a partner is its own partner.

  Args:
    graph: an undirected networkx graph. Loops are ignored, and parallel edges
      count once.

  Example:
    >>> import networkx as nx
    >>> [each.tolist() for each in edge_colors(nx.path_graph(3))]
    [[1, 0, 2], [0, 2, 1]]
  """
  import networkx as nx

  index = {node: i for i, node in enumerate(graph)}
  simple = nx.Graph((index[u], index[v]) for u, v in graph.edges() if u != v)
  n = len(index)
  if n > MOST_COLORED and simple.number_of_edges() == n * (n - 1) // 2:
    return _circle(n)
  colors = saturation_colors(nx.line_graph(simple))
  matchings = np.tile(np.arange(n), (max(colors.values(), default=0) + 1, 1))
  for (i, j), color in colors.items():
    matchings[color, [i, j]] = j, i
  return list(matchings)


def _circle(n: int) -> list[np.ndarray]:
  """Return the matchings of the complete graph, by the circle method."""
  even, replica = n + n % 2, np.arange(n)
  rounds = [partner(replica, r, even) for r in range(even - 1)]
  # With odd N, the partner N means none.
  return [np.where(other == n, replica, other) for other in rounds]


def saturation_colors(graph: 'nx.Graph') -> dict:
  """Return a coloring of the nodes by DSATUR (Brélaz 1979).

  It is `networkx.greedy_color(graph, 'DSATUR')`, whose time is quadratic in the
  number of nodes. With a heap it is about linear in the edges.

  Args:
    graph: an undirected networkx graph.

  Example:
    >>> import networkx as nx
    >>> saturation_colors(nx.cycle_graph(4))
    {0: 0, 1: 1, 2: 0, 3: 1}
  """
  nodes = list(graph)
  place = {node: i for i, node in enumerate(nodes)}
  near = [[place[other] for other in graph[node]] for node in nodes]
  seen: list[set[int]] = [set() for _ in nodes]  # colors of the neighbors
  colors: dict[int, int] = {}
  heap = [(0, -len(near[i]), i) for i in range(len(nodes))]
  heapq.heapify(heap)
  while heap:
    saturation, _, i = heapq.heappop(heap)
    if i in colors or -saturation < len(seen[i]):
      continue  # because the node has a newer entry
    colors[i] = next(c for c in range(len(near[i]) + 1) if c not in seen[i])
    for j in near[i]:
      if j not in colors and colors[i] not in seen[j]:
        seen[j].add(colors[i])
        heapq.heappush(heap, (-len(seen[j]), -len(near[j]), j))
  return {nodes[i]: color for i, color in colors.items()}
