"""What an algorithm costs: rounds, bytes and modeled time.

`counting` has the ledger, `network` the machines and links on which time is
modeled, `clocks` a clock for each replica.
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
