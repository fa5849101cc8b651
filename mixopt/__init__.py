"""mixopt finds the mixture of training domains for a language model."""

__version__ = "0.1.0"
