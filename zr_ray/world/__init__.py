"""The built-in rubric world: SIMULATED prompts, images, true scores, annotators and oracle reasoning. Not human data.

scene      what a scene holds and where objects stand        render     scene -> pixels
sampling   random prompts and candidates                     truth      scene -> true scores
reasoning  oracle chains and the closed vocabulary           perception dense targets for a vision tower
annotators simulated raters, spread fitted to real ratings   build      writes the on-disk format of
`data/annotations.py`
"""

from zr_ray.world.perception import CELL_CLASSES, IMAGE_CLASSES, LEVEL_NAMES, perception_targets
from zr_ray.world.reasoning import reasoning_chains, vocabulary
from zr_ray.world.render import render
from zr_ray.world.sampling import Candidate, sample_candidates, sample_group
from zr_ray.world.scene import Request, Scene
from zr_ray.world.truth import true_scores

__all__ = [
    "CELL_CLASSES",
    "IMAGE_CLASSES",
    "LEVEL_NAMES",
    "Candidate",
    "Request",
    "Scene",
    "perception_targets",
    "reasoning_chains",
    "render",
    "sample_candidates",
    "sample_group",
    "true_scores",
    "vocabulary",
]
