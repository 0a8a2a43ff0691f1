"""Graphs: the nodes of one graph, or whole graphs, from PyG, a file or arrays."""

import warnings

# PyG's import says so of itself, at every start
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
