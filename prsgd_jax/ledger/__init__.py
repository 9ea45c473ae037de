"""LEDGER: the cost of an algorithm: rounds, bytes and modeled time.

`counting` adds up the costs. `network` describes the machines and links of the
modeled time. `clocks` simulates one clock per replica.
"""

from prsgd_jax.ledger.counting import (
  Account,
  Meter,
  Position,
  Spent,
  account,
  meter,
  spent_at,
  with_decided,
  working_share,
)
from prsgd_jax.ledger.network import (
  ETHERNET,
  INSIDE,
  NETWORK,
  TIERS,
  Link,
  Network,
)

__all__ = (
  'ETHERNET',
  'INSIDE',
  'NETWORK',
  'TIERS',
  'Account',
  'Link',
  'Meter',
  'Network',
  'Position',
  'Spent',
  'account',
  'meter',
  'spent_at',
  'with_decided',
  'working_share',
)
