"""Which domains help each target and which cost it, from models that average the components of subsets of domains (arXiv 2410.15661).

`plan` says which subsets have to be measured, `effects` what follows from their losses, `page` shows it. The main trade-off: it is the uniform
average of components that is ablated, a stand-in for training on the union of domains; where merged proxies are not trusted, neither is this.
"""
