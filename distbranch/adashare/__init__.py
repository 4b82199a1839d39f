"""AdaShare (Sun et al., NeurIPS 2020) without a network: the policy's values and losses, and the course of its search."""
