"""The path of a pack on a GPU: bfloat16 products over float32 weights, and a whole step without the host, captured as one graph.

A CPU fits its products to data it looks at, a graph cannot look; so forward pass, loss and optimizer exist a second time here, and tests hold the
two equal. `step` is what a pack uses, `engine` the fixed places behind it, the rest its parts. The trade-off: two paths to keep equal.
"""
