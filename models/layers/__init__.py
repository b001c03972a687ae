"""Building blocks shared by the families: plain PyTorch, static shapes, nothing but torch imported.

Axes: ``B`` batch, ``T`` query positions, ``S`` cache positions, ``D`` model width, ``N`` query heads, ``K``
key/value heads, ``H`` head dim, ``V`` vocabulary.
"""
