"""Tangent kernels of any module: what its graph tells of how parameters are used, and products of that."""
