"""Graphs: the nodes of one graph, or whole graphs, from PyG, a file or arrays."""
