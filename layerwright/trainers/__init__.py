"""Ways to train: the plain loop that finishes an edit, and layer-wise methods, one file each."""
