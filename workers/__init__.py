"""Thin joints between mixopt (what a mixture is) and proxy_models (how a proxy trains): preparation, packs, runners."""
