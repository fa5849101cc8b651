"""The embedded corpus: real text from what every installation of mixopt already holds; offline and deterministic."""

from mixopt.corpus.demo.build import DemoCorpus, Part, build_demo_corpus

__all__ = ["DemoCorpus", "Part", "build_demo_corpus"]
