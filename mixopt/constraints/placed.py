"""What limits on the mixture as a whole mean for a set of domains: where the ball lies, and what is written down of it.

A named mixture is looked up here, once, so that a record holds the weights that were meant. The main trade-off: limits that limit nothing, as many
domains as there are or a distance of 1, are dropped here and not where they are read, since only domains tell.
"""

from __future__ import annotations

from typing import Any

from mixopt.constraints.rules import Ball
from mixopt.domains import DomainSet
from mixopt.mixture import Mixture


def ball_of(domains: DomainSet) -> Ball | None:
    """The ball around the mixture that the domains are to stay near, None where they may be anywhere.

    Raises:
        InfeasibleError: UniMax is meant, and does not exist.
        ConfigError: the mixture gives weight to a domain that there is not.
    """
    near = domains.constraints.near
    if near is None or near.distance >= 1:
        return None
    if isinstance(near.mixture, str):
        centre = {"natural": domains.natural, "uniform": domains.uniform, "unimax": domains.unimax}[near.mixture]()
    else:
        given = dict(near.mixture)
        centre = Mixture.of({**dict.fromkeys(domains.names, 0.0), **given})
    return Ball(centre.array(domains.names), near.distance, near.title)


def most_domains_of(domains: DomainSet) -> int | None:
    """The largest number of domains, None where there are no more anyway."""
    most = domains.constraints.most_domains
    return None if most is None or most >= int(domains.units.counts.sum()) else most


def constraints_json(domains: DomainSet) -> dict[str, Any]:
    """The limits as JSON values, with the weights that are meant; empty where there are none."""
    most, ball = most_domains_of(domains), ball_of(domains)
    found: dict[str, Any] = {} if most is None else {"most_domains": most}
    if ball is not None:
        weights = dict(zip(domains.names, ball.centre.tolist(), strict=True))
        found["near"] = {"title": ball.title, "distance": ball.distance, "weights": weights}
    return found
