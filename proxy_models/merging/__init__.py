"""Merges of trained proxies: components by domain, their weighted merge in place of a proxy trained on the mixture.

What is here: where components lie (`components`) and the pieces in which they stream (`pieces`); what makes one tensor of several
(`operators`, `sparse_operators`); one merge (`merge`) and many at once (`contraction`); what experts need besides (`alignment`, `bias`);
what a merge is told by (`routes`, `diagnosis`). Methods: DeMix (arXiv 2602.00747) and MergeMix (arXiv 2601.17858). The trade-off: merged
proxies rank mixtures, they do not predict losses; and they do so only where components begin from one base and do not go far.
"""
