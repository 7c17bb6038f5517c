"""What a run's checkpoints and skip-lists tell of its pruning, as the TED paper shows it in Figures 1, 2, 4 and 8.

- ``runs``: what a run folder holds;
- ``evaluation``: losses, gradients and test metrics of a run's network with given weights;
- ``plan``: what is computed of which checkpoint, and what is left out; ``computing``: the numbers of one run;
- ``results``: these, row by row; ``plots``: the figures;
- ``analyse``: several runs, and the files.
"""
