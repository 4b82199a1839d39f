"""Networks: the layers of the backbones, the network of a tree, and what it costs."""
