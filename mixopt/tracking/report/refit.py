"""Effects of domains for proposals recorded before they were stored with it: the surrogate is fitted again, to the same swarm."""

from __future__ import annotations

import dataclasses

import yaml

from mixopt.effects import domain_effects
from mixopt.errors import MixoptError
from mixopt.mixture import Mixture
from mixopt.prediction import predict
from mixopt.surrogates import get_surrogate
from mixopt.tracking.findings import Findings


def with_effects(findings: Findings) -> Findings:
    """The findings with the effects of domains; unchanged where they have them, or where nothing can be fitted."""
    proposal, objective = findings.proposal, findings.objective
    if proposal is None or objective is None or findings.effects is not None:
        return findings
    settings = (yaml.safe_load(findings.search.experiment_yaml) or {}).get("search") or {}
    natural = Mixture.of(findings.context["natural"]).array(findings.domains)
    try:
        swarm = findings.answered
        surrogate = get_surrogate(settings.get("surrogate", "gaussian_process"))
        prediction = predict(surrogate, swarm, objective, findings.domains, natural, int(settings.get("seed", 0)))
    except MixoptError:
        return findings  # too few trials, or a surrogate this version does not know: the section says that there are none
    evidence = {**proposal.evidence, "domain_effects": domain_effects(prediction, "natural", natural).to_json()}
    return dataclasses.replace(findings, proposal=dataclasses.replace(proposal, evidence=evidence))
