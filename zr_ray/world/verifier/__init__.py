"""The verifier: reads a 64 x 64 picture by classical image analysis, without learning, and scores it on the rubric of
the world."""
