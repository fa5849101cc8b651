"""A swarm of the user's own: two tables in; predictions, an answer, and how far to trust both, out. No training, no GPU, no Ray.

`tables` reads files, `runs` joins them into a swarm, `file` is what `--config` may say, `fit` does the work, `diagnostics` judges it, `outputs` and
`page` write it down.
"""
