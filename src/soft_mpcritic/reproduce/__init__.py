"""The paper's case studies as grids of runs: arXiv 2604.01477."""
