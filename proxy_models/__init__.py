"""The proxies: tiny Mixture-of-Experts language models, several of them stacked along a leading axis K and trained as one.

What is here: the model and its size dial (`config`, `layers`, `moe`, `loss`, `model`), its optimizer, and `reference`, the plain slow model
that tests compare all of it with. Why stacked: K small models in one process share every kernel launch, and K=1 is the single model, so that
there is one code path (HFTA, arXiv 2102.02344, fuses training jobs in the same way). The trade-off: the members of a pack must have one shape.

Pure torch, numpy and safetensors: nothing here knows of mixtures to search, Ray or MLflow.
"""

ENGINE_VERSION = "1"
"""Part of every trial's identity. Raise it when the same settings no longer give the same losses."""
