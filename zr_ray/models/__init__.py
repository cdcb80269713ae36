"""Models: text, packing, forward and pixels of a judge, and the student as a differentiable function of pixels."""
